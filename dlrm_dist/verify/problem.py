"""The problem that both sides train on: the config's model with small tables, and batches drawn from a seed."""

from dataclasses import dataclass

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_dist.data.batch import ClickBatch
from dlrm_dist.models.shape import Feature, ModelShape
from dlrm_dist.models.tables import ModelTable, tables_of
from dlrm_dist.sections import ModelSection
from dlrm_dist.verify.cases import BATCH_SIZE

STEPS = 20
_MOST_ROWS = 500
_MOST_IDS = 4


@dataclass(frozen=True)
class Problem:
    """A model's shape with few rows, and its training batches."""

    model: ModelSection
    shape: ModelShape
    seed: int = 0

    @property
    def tables(self) -> tuple[ModelTable, ...]:
        """The model's tables."""
        return tables_of(self.model, self.shape.named_rows)

    def batch(self, step: int, rank: int, world_size: int) -> ClickBatch:
        """A rank's share of a step: bags of no, one or several ids; the rows are the same for any number of ranks."""
        generator = torch.Generator().manual_seed(self.seed * 1000 + step)
        features = self.shape.features
        lengths = torch.randint(0, _MOST_IDS, (len(features), BATCH_SIZE), generator=generator)
        ids = [
            torch.randint(feature.rows, (int(lengths[number].sum()),), generator=generator)
            for number, feature in enumerate(features)
        ]
        dense = torch.rand(BATCH_SIZE, self.shape.num_dense, generator=generator)
        labels = (torch.rand(BATCH_SIZE, generator=generator) < 0.4).float()
        size = -(-BATCH_SIZE // world_size)
        rows = slice(min(rank * size, BATCH_SIZE), min((rank + 1) * size, BATCH_SIZE))
        mine, kept = _padded(lengths[:, rows], size), []
        for number in range(len(features)):
            ends = lengths[number].cumsum(0)
            first = int(ends[rows.start - 1]) if rows.start else 0
            kept.append(ids[number][first : first + int(mine[number].sum())])
        return ClickBatch(
            dense=_padded(dense[rows].T, size).T.contiguous(),
            sparse=KeyedJaggedTensor.from_lengths_sync(
                keys=[feature.name for feature in features],
                values=torch.cat(kept),
                lengths=mine.flatten().to(torch.int32),
            ),
            labels=_padded(labels[rows][None], size)[0],
            weights=_padded(torch.ones(1, rows.stop - rows.start), size)[0],
            loss_scale=torch.tensor(world_size / BATCH_SIZE),
        )


def small(model: ModelSection, shape: ModelShape) -> Problem:
    """The problem of a config's model, its tables cut down to a few hundred rows of different numbers."""
    rows = {
        name: max(50, min(table.rows, _MOST_ROWS - 7 * number % 200))
        for number, table in enumerate(tables_of(model, shape.named_rows))
        for name in table.features
    }
    features = tuple(Feature(feature.name, rows[feature.name]) for feature in shape.features)
    return Problem(model, ModelShape(shape.num_dense, features))


def _padded(values: torch.Tensor, columns: int) -> torch.Tensor:
    """`values` [N, M] with zeros behind, [N, columns]."""
    return torch.nn.functional.pad(values, (0, columns - values.shape[1]))

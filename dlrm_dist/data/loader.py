"""Parquet to batches: each rank reads its own lanes, a stripe ahead of what is trained on."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_dist.data.batch import ClickBatch
from dlrm_dist.data.order import EpochOrder
from dlrm_dist.data.schema import LABEL, DatasetInfo, part_metadata
from dlrm_dist.errors import RankError, UserError


@dataclass(frozen=True)
class Rows:
    """Decoded rows of a rank in training order.

    Attributes:
        dense: float32 [n, num_dense].
        ids: int32 or int64 [num_categories, n]: feature-major, as a KeyedJaggedTensor wants it.
        labels: float32 [n].
    """

    dense: npt.NDArray[np.float32]
    ids: npt.NDArray[np.integer]
    labels: npt.NDArray[np.float32]

    def slice(self, start: int, stop: int) -> "Rows":
        """Rows `start` to `stop` (exclusive), without a copy."""
        return Rows(self.dense[start:stop], self.ids[:, start:stop], self.labels[start:stop])

    @staticmethod
    def concatenate(parts: list["Rows"]) -> "Rows":
        """The parts one behind another."""
        if len(parts) == 1:
            return parts[0]
        return Rows(
            np.concatenate([part.dense for part in parts]),
            np.concatenate([part.ids for part in parts], axis=1),
            np.concatenate([part.labels for part in parts]),
        )


@dataclass(frozen=True)
class SplitReader:
    """One split of a dataset as seen by one rank."""

    folder: Path
    info: DatasetInfo
    split: str
    rank: int
    world_size: int
    pin: bool = False

    def __post_init__(self) -> None:
        if self.split not in self.info.splits:
            allowed = ", ".join(self.info.splits)
            raise UserError(f"{self.folder}: has no split {self.split!r}; it has {allowed}")
        if self.world_size > self.info.lanes:
            raise UserError(
                f"{self.folder}: is written in {self.info.lanes} lanes and serves at most as many ranks, not "
                f"{self.world_size}; start fewer ranks, or prepare it with more lanes"
            )

    @property
    def rows(self) -> int:
        """Rows of the split, over all ranks."""
        return self.info.splits[self.split].rows

    def order(self, batch_size: int, seed: int | None, epoch: int = 0, drop_last: bool = False) -> EpochOrder:
        """The order of an epoch in global batches of `batch_size`."""
        return EpochOrder(self.rows, self.info.lanes, self.info.group_rows, batch_size, seed, epoch, drop_last)

    def batches(self, order: EpochOrder, first_step: int = 0) -> Iterator[ClickBatch]:
        """This rank's batches of an epoch from `first_step` on; every rank gets equally many of equal size."""
        batch_size = order.per_rank_batch_size(self.world_size)
        bounds = [order.step_bounds(step) for step in range(first_step, order.num_steps)]
        edges = np.array([bound[0] for bound in bounds] + [bounds[-1][1] if bounds else 0])
        local = order.rank_position(edges, self.rank, self.world_size)
        rows = self._rows(order, int(local[0]), np.diff(local))
        for (start, stop), part in zip(bounds, rows, strict=True):
            batch = self._to_batch(part, batch_size, stop - start)
            yield batch.pin_memory() if self.pin else batch

    def _rows(self, order: EpochOrder, position: int, counts: npt.NDArray[np.int64]) -> Iterator[Rows]:
        """The rank's rows from its `position` in the epoch on, cut into pieces of `counts` rows."""
        stripes = self._stripes(order, position)
        rest = next(stripes)
        for count in counts:
            parts = [rest.slice(0, int(count))]
            missing = int(count) - len(parts[0].labels)
            rest = rest.slice(int(count), len(rest.labels))
            while missing > 0:
                rest = next(stripes)
                parts.append(rest.slice(0, missing))
                rest = rest.slice(missing, len(rest.labels))
                missing -= len(parts[-1].labels)
            yield Rows.concatenate(parts)

    def _stripes(self, order: EpochOrder, position: int) -> Iterator[Rows]:
        """Decoded stripes from `position` on; the next one is read while this one is used."""
        ends = order.rank_position(order.stripe_ends, self.rank, self.world_size)
        first = int(np.searchsorted(ends, position, side="right"))
        skip = position - (int(ends[first - 1]) if first else 0)
        stripes = order.stripes[first:]
        if len(stripes) == 0:
            yield self._empty()
            return
        with ThreadPoolExecutor(1, thread_name_prefix="stripe-reader") as pool:
            ahead: Future[Rows] = pool.submit(self._read_stripe, order, int(stripes[0]))
            for stripe in [*stripes[1:], None]:
                rows = ahead.result()
                if stripe is not None:
                    ahead = pool.submit(self._read_stripe, order, int(stripe))
                yield rows.slice(skip, len(rows.labels))
                skip = 0

    @cached_property
    def _row_groups(self) -> tuple[npt.NDArray[np.int64], list[Path]]:
        """First row group of each part (and the total), and the parts' paths."""
        paths = [self.folder / part for part in self.info.splits[self.split].parts]
        counts = [part_metadata(path).num_row_groups for path in paths]
        return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]), paths

    def _read_stripe(self, order: EpochOrder, stripe: int) -> Rows:
        """The rank's lanes of a stripe, in the order of the epoch."""
        starts, paths = self._row_groups
        first = stripe * self.info.lanes
        groups = np.arange(first, min(first + self.info.lanes, starts[-1]))[self.rank :: self.world_size]
        tables = []
        for part in np.unique(np.searchsorted(starts, groups, side="right") - 1):
            inside = groups[(groups >= starts[part]) & (groups < starts[part + 1])] - starts[part]
            tables.append(self._read_groups(paths[part], inside.tolist()))
        if not tables:
            return self._empty()
        return self._decode(pa.concat_tables(tables), order.local_order(stripe, self.rank, self.world_size))

    def _read_groups(self, path: Path, groups: list[int]) -> pa.Table:
        columns = [LABEL, *self.info.dense, *(category.name for category in self.info.categories)]
        try:
            with pq.ParquetFile(path) as file:
                return file.read_row_groups(groups, columns=columns)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise RankError(f"{path}: cannot be read: {reason}; prepare the dataset again") from None

    def _decode(self, table: pa.Table, order: npt.NDArray[np.int64]) -> Rows:
        """Columns to arrays in training order: one gather a column."""
        dense = np.empty((len(order), len(self.info.dense)), dtype=np.float32)
        for i, name in enumerate(self.info.dense):
            dense[:, i] = table[name].to_numpy()[order]
        wide = any(pa.types.is_int64(table[category.name].type) for category in self.info.categories)
        ids = np.empty((len(self.info.categories), len(order)), dtype=np.int64 if wide else np.int32)
        for i, category in enumerate(self.info.categories):
            if table[category.name].null_count:
                raise RankError(
                    f"{self.folder}: split {self.split}, column {category.name} has nulls; prepare the dataset again"
                )
            column = table[category.name].to_numpy()
            self._check_ids(category.name, category.rows, column)
            ids[i] = column[order]
        return Rows(dense, ids, table[LABEL].to_numpy()[order].astype(np.float32))

    def _check_ids(self, name: str, rows: int, column: npt.NDArray[np.integer]) -> None:
        """The lookup kernels on CPU accept an id beyond its table silently, and may read or write past it."""
        if len(column) and (column.min() < 0 or column.max() >= rows):
            bad = column[(column < 0) | (column >= rows)][0]
            raise RankError(
                f"{self.folder}: split {self.split}, column {name}: id {bad} lies outside its table of {rows} rows "
                f"(0 to {rows - 1}); prepare the dataset again"
            )

    def _empty(self) -> Rows:
        return Rows(
            np.empty((0, len(self.info.dense)), np.float32),
            np.empty((len(self.info.categories), 0), np.int32),
            np.empty(0, np.float32),
        )

    def _to_batch(self, rows: Rows, batch_size: int, global_rows: int) -> ClickBatch:
        """Pad to `batch_size` rows (empty bags, weight 0) and turn into tensors."""
        count = len(rows.labels)
        num_categories = len(self.info.categories)
        dense = np.zeros((batch_size, len(self.info.dense)), np.float32)
        labels = np.zeros(batch_size, np.float32)
        weights = np.zeros(batch_size, np.float32)
        dense[:count], labels[:count], weights[:count] = rows.dense, rows.labels, 1.0
        lengths = np.zeros((num_categories, batch_size), np.int32)
        lengths[:, :count] = 1
        sparse = KeyedJaggedTensor(
            keys=[category.name for category in self.info.categories],
            values=torch.from_numpy(np.ascontiguousarray(rows.ids).reshape(-1)),
            lengths=torch.from_numpy(lengths.reshape(-1)),
            stride=batch_size,
            length_per_key=[count] * num_categories,
        )
        scale = torch.tensor(self.world_size / global_rows)
        return ClickBatch(torch.from_numpy(dense), sparse, torch.from_numpy(labels), torch.from_numpy(weights), scale)

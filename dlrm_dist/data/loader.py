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

from dlrm_dist.data.batch import ClickBatch
from dlrm_dist.data.order import EpochOrder
from dlrm_dist.data.rows import RowCodec, Rows, expanded_sizes
from dlrm_dist.data.schema import LABEL, DatasetInfo, part_metadata
from dlrm_dist.errors import RankError, UserError


@dataclass(frozen=True)
class SplitReader:
    """One split of a dataset as seen by one rank.

    `expand` makes a sample's id in each category so many (MLPerf's DLRM-DCNv2): the first is its own, the others are
    drawn once per id. `pin` gives batches in page-locked memory.
    """

    folder: Path
    info: DatasetInfo
    split: str
    rank: int
    world_size: int
    pin: bool = False
    expand: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.split not in self.info.splits:
            allowed = ", ".join(self.info.splits)
            raise UserError(f"{self.folder}: has no split {self.split!r}; it has {allowed}")
        if self.world_size > self.info.lanes:
            raise UserError(
                f"{self.folder}: is written in {self.info.lanes} lanes and serves at most as many ranks, not "
                f"{self.world_size}; start fewer ranks, or prepare it with more lanes"
            )
        expanded_sizes(self.info, self.expand)

    @cached_property
    def _codec(self) -> RowCodec:
        return RowCodec(f"{self.folder}: split {self.split}", self.info, self.expand, self.world_size)

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
            batch = self._codec.batch(part, batch_size, stop - start)
            yield batch.pin_memory() if self.pin else batch

    def _rows(self, order: EpochOrder, position: int, counts: npt.NDArray[np.int64]) -> Iterator[list[Rows]]:
        """The rank's rows from its `position` in the epoch on, `counts` of them at a time, in pieces of stripes."""
        stripes = self._stripes(order, position)
        rest = next(stripes)
        for count in counts.tolist():
            parts = [rest.slice(0, count)]
            missing = count - len(parts[0].labels)
            rest = rest.slice(count, len(rest.labels))
            while missing > 0:
                rest = next(stripes)
                parts.append(rest.slice(0, missing))
                rest = rest.slice(missing, len(rest.labels))
                missing -= len(parts[-1].labels)
            yield parts

    def _stripes(self, order: EpochOrder, position: int) -> Iterator[Rows]:
        """Decoded stripes from `position` on; the next one is read while this one is used."""
        ends = order.rank_position(order.stripe_ends, self.rank, self.world_size)
        first = int(np.searchsorted(ends, position, side="right"))
        skip = position - (int(ends[first - 1]) if first else 0)
        stripes = order.stripes[first:]
        if len(stripes) == 0:
            yield self._codec.empty()
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
            return self._codec.empty()
        local = order.local_order(stripe, self.rank, self.world_size)
        return self._codec.decode(pa.concat_tables(tables).combine_chunks(), local, len(groups))

    def _read_groups(self, path: Path, groups: list[int]) -> pa.Table:
        columns = [LABEL, *self.info.dense, *(category.name for category in self.info.categories)]
        columns += [self.info.weight] if self.info.weight else []
        try:
            with pq.ParquetFile(path, memory_map=True) as file:
                return file.read_row_groups(groups, columns=columns)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise RankError(f"{path}: cannot be read: {reason}; prepare the dataset again") from None

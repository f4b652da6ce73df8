"""Counting the values of a column in bounded memory, and their vocabulary: a file in the order of their ids.

A pass over the column counts its values from the lowest on, as far as memory reaches, and leaves what is kept of them
on disk: a partition, by falling count, then rising value. The next pass goes on with the values above. Merged, which
takes no more memory than one row group, the partitions are the vocabulary, whatever their number.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dlrm_dist.data.runs import Run, merged, run_of, starts_of
from dlrm_dist.data.vocabulary import GROUP_ROWS, Values, numbers_of

_LEAST_RUN = 1 << 16
_BYTES = 80
"""Memory for each of the distinct values that a pass may hold: 48 for it while runs are merged, 28 for half as many
new ones, which wait beside it to be sorted, and their runs."""


class Partition:
    """The kept values of a range: a file of records (value, count), by falling count, then rising value."""

    def __init__(self, path: Path, type_: np.dtype[Any]) -> None:
        """Open a partition of values of a type."""
        self._path, self._record = path, np.dtype([("value", type_), ("count", np.int64)])
        falling = -self.read(0, -1)["count"]
        starts = starts_of(falling)
        self.keys = falling[starts]
        """The counts that values have, negative, int64 [m]."""
        self._ends = np.append(starts, len(falling))

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Records `start` to `stop`, or to the end if that is -1."""
        count = stop - start if stop >= 0 else -1
        return np.fromfile(self._path, self._record, count=count, offset=start * self._record.itemsize)

    def before(self, keys: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """How many values come before those of each count (negative)."""
        return self._ends[np.searchsorted(self.keys, keys)]


def count_values(
    arrays: Callable[[], Iterable[pa.Array]], folder: Path, min_count: int, budget: int
) -> list[Partition]:
    """Count the values of a column that are there `min_count` times or more.

    Args:
        arrays: gives the column's arrays, raw or lists of raw values; called again for each pass.
        folder: for partitions; those that are there, of the same column, are not counted again.
        min_count: how often a value must be seen.
        budget: bytes to use.

    Returns:
        The partitions: ranges of values in rising order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    type_ = numbers_of(_flat(next(iter(arrays())))).dtype
    largest = int(np.iinfo(type_).max)
    paths = sorted(folder.glob("*.bin"))  # named by the last value of their range
    last = int(paths[-1].stem) if paths else -1
    while last < largest:
        found, last = _count_from(arrays, last + 1, largest, max(_LEAST_RUN, budget // _BYTES))
        paths.append(folder / f"{last:020d}.bin")
        _write(found, min_count, paths[-1])
    return [Partition(path, type_) for path in paths]


def _write(found: Run, min_count: int, path: Path) -> None:
    """Write a partition, which appears when it is complete."""
    frequent = found.counts >= min_count
    values, counts = found.values[frequent], found.counts[frequent]
    order = np.argsort(-counts, kind="stable")
    records = np.empty(len(values), [("value", values.dtype), ("count", np.int64)])
    records["value"], records["count"] = values[order], counts[order]
    unfinished = path.with_suffix(".tmp")
    records.tofile(unfinished)
    unfinished.rename(path)


@dataclass
class _Pass:
    """Values from `first` to `last` that were counted: runs, one behind another."""

    first: int
    last: int
    runs: list[Run] = field(default_factory=list)

    @property
    def distinct(self) -> int:
        return sum(len(run.values) for run in self.runs)

    def of(self, values: Values) -> Values:
        """Those of some values that belong to the pass."""
        if self.first == 0 and self.last == np.iinfo(values.dtype).max:
            return values
        return values[(values >= self.first) & (values <= self.last)]

    def merge(self) -> None:
        self.runs = [merged(self.runs)]

    def halve(self) -> None:
        """Leave the upper half of the values to the next pass; what is counted of the lower half stays right."""
        values, counts = self.runs[0]
        half = len(values) // 2
        self.last = int(values[half - 1])
        self.runs = [Run(values[:half].copy(), counts[:half].copy())]


def _count_from(arrays: Callable[[], Iterable[pa.Array]], first: int, largest: int, most: int) -> tuple[Run, int]:
    """Count the values from `first` on, about `most` distinct ones; gives the last value that was counted too."""
    made = _Pass(first, largest)
    for values in _pieces(arrays(), made, -(-most // 2)):
        made.runs.append(run_of(values))
        del values  # else the next one is made beside it
        if made.distinct > most:
            made.merge()
            if made.distinct > max(_LEAST_RUN, most * 3 // 4):  # so that there is room until the next merge
                made.halve()
    made.merge()
    return made.runs[0], made.last


def _pieces(arrays: Iterable[pa.Array], made: _Pass, size: int) -> Iterator[Values]:
    """The values of a pass that are not missing, `size` or a few more at a time, for the caller to change."""
    waiting: list[Values] = []
    have = 0
    for array in arrays:
        flat = _flat(array)
        values = numbers_of(pc.drop_null(flat) if flat.null_count else flat)
        for start in range(0, len(values), size):
            waiting.append(made.of(values[start : start + size]))
            have += len(waiting[-1])
            if have >= size:
                yield _joined(waiting)
                have = 0
    yield _joined(waiting) if waiting else np.empty(0, numbers_of(_flat(array)).dtype)


def _joined(waiting: list[Values]) -> Values:
    joined = np.concatenate(waiting)
    waiting.clear()
    return joined


def _flat(array: pa.Array) -> pa.Array:
    return array.flatten() if pa.types.is_list(array.type) else array


def write_vocabulary(partitions: list[Partition], missing: int, path: Path, most: int | None = None) -> None:
    """Write the values of all partitions by falling count, then rising value, as Parquet: row i has the id i + 1.

    Args:
        partitions: what `count_values` gives.
        missing: how often a missing value was seen, which comes before all others of that count; 0 if it gets no id.
        path: of the file.
        most: ids to give out, to the first values in that order; not given: to all.
    """
    merged = _Merged(partitions)
    place = merged.before(-missing) if missing else -1
    rows = merged.rows + (place >= 0)
    rows = rows if most is None else min(rows, most)
    type_ = pa.from_numpy_dtype(partitions[0].read(0, 0)["value"].dtype)
    with pq.ParquetWriter(path, pa.schema([("value", type_), ("count", pa.int64())]), compression="zstd") as out:
        for start in range(0, max(1, rows), GROUP_ROWS):
            stop = min(start + GROUP_ROWS, rows)
            found = merged.read(start - (0 <= place < start), stop - (0 <= place < stop))
            values, counts = (np.ascontiguousarray(found[name]) for name in ("value", "count"))
            values = pa.array(values)
            if start <= place < stop:
                at = place - start
                values = pa.concat_arrays([values[:at], pa.nulls(1, type_), values[at:]])
                counts = np.insert(counts, at, missing)
            out.write_table(pa.table({"value": values, "count": counts}), row_group_size=GROUP_ROWS)


class _Merged:
    """The values of all partitions by falling count, then partition."""

    def __init__(self, partitions: list[Partition]) -> None:
        self._partitions = partitions
        self._keys = np.unique(np.concatenate([each.keys for each in partitions]))
        ends = np.append(self._keys[1:], 0)  # a key that is above all, as counts are positive
        self._totals = sum((each.before(ends) for each in partitions), np.zeros(len(ends), np.int64))
        self.rows = int(self._totals[-1]) if len(self._keys) else 0

    def before(self, key: int) -> int:
        """How many values come before those of a count (negative)."""
        return sum(int(each.before(key)) for each in self._partitions)

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Records `start` to `stop` of all."""
        bounds = zip(self._partitions, self._cuts(start), self._cuts(stop), strict=True)
        found = np.concatenate([partition.read(first, last) for partition, first, last in bounds])
        return found[np.argsort(-found["count"], kind="stable")]

    def _cuts(self, rows: int) -> list[int]:
        """How many of each partition's values are among the first of all."""
        if not rows:
            return [0] * len(self._partitions)
        at = int(np.searchsorted(self._totals, rows))
        rest = rows - (int(self._totals[at - 1]) if at else 0)
        cuts = []
        for each in self._partitions:
            before, after = each.before([self._keys[at], self._keys[at] + 1]).tolist()
            cuts.append(before + min(rest, after - before))
            rest -= cuts[-1] - before
        return cuts

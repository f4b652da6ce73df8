"""The order of the shuffle: buckets of rows drawn while they were read, each in an order of its own.

A bucket that is read at once is put in order in memory. One that is too wide for that is spooled again, by the place
that its rows will have: then a range of places is read at once. The order is the same either way.
"""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dlrm_dist.data.spool import Chunk, Rows, Spool
from dlrm_dist.data.taking import taken

Replaced = Mapping[str, Callable[[int], Path]]


class Shuffled:
    """The rows of the first `buckets` keys of a spool in the order that `seed` gives, `most_rows` in memory."""

    def __init__(self, rows: Rows, replaced: Replaced, buckets: int, seed: int, most_rows: int, folder: Path) -> None:
        """Take rows, columns that other files have (see `Rows.read`), and a folder for what is spooled again."""
        self._rows, self._replaced, self._seed, self._most, self._folder = rows, replaced, seed, most_rows, folder
        self._counts = rows.counts[:buckets]
        self._ends = np.cumsum(self._counts)
        self._locks = [threading.Lock() for _ in range(buckets)]

    def read(self, start: int, stop: int) -> pa.Table:
        """The rows at some places."""
        tables = []
        first, last = np.searchsorted(self._ends, [start, stop - 1], side="right")
        for bucket in range(first, last + 1):
            size = int(self._counts[bucket])
            before = int(self._ends[bucket]) - size
            tables += self._read(bucket, max(0, start - before), min(stop - before, size))
        return pa.concat_tables(tables)

    def _read(self, bucket: int, start: int, stop: int) -> list[pa.Table]:
        """The rows at some places of a bucket."""
        size = int(self._counts[bucket])
        if start >= stop:
            return []
        order = np.random.default_rng([self._seed, 1 + bucket]).permutation(size)
        if size <= self._most:
            return [_taken(self._rows.read(self._rows.slices(bucket, 0, size), self._replaced), order[start:stop])]
        with self._locks[bucket]:
            placed = self._placed(bucket, order)
        tables = []
        for part in range(start // self._most, -(-stop // self._most)):
            begin, end = part * self._most, min((part + 1) * self._most, size)
            rank = np.argsort(np.argsort(order[begin:end]))  # rows of a part lie in the order of the log
            whole = placed.read(placed.slices(part, 0, end - begin), {})
            tables.append(_taken(whole, rank[max(start - begin, 0) : stop - begin]))
            del whole  # else the next one is made beside it
        return tables

    def _placed(self, bucket: int, order: npt.NDArray[np.int64]) -> Rows:
        """A bucket's rows, keys being the parts of its order."""
        size, most = len(order), self._most
        places = np.empty(size, np.int64)
        places[order] = np.arange(size)
        parts = -(-size // most)
        self._folder.mkdir(exist_ok=True)
        placed = Spool(self._folder / f"{bucket:06d}-{most}", parts, parts)
        for part in range(parts):
            if not placed.has(part):
                start, stop = part * most, min((part + 1) * most, size)
                inside = self._rows.slices(bucket, start, stop)
                placed.write(part, [Chunk(self._rows.read(inside, self._replaced), places[start:stop] // most)])
        return placed.load()


def _taken(table: pa.Table, order: npt.NDArray[np.int64]) -> pa.Table:
    return pa.table({name: taken(table[name].combine_chunks(), order) for name in table.column_names})

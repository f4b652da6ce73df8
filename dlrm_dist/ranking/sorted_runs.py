"""Weights of clicks and non-clicks by a pair of keys, in order, for more rows than memory holds.

Each rank collects rows, puts them in order when it has a million, adds up those of equal keys, and writes such a run
to a folder that all ranks share. Then each rank takes a range of the first key and merges what all runs have of it, a
block of each at a time. So memory does not grow with the number of rows (160 MB a rank), and the disk takes 32
bytes a row at most.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dlrm_dist.runtime import Session

Int = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]
RUN_ROWS = 1 << 20
_SAMPLES = 4096
"""Keys that a rank shows the others, so that all get about equal ranges."""


class Records(NamedTuple):
    """Rows [n]: two keys, int64, and the weights of clicks and of non-clicks with these keys, float64."""

    outer: Int
    inner: Int
    positive: Float
    negative: Float

    def part(self, start: int, stop: int) -> "Records":
        """Rows `start` to `stop` (exclusive)."""
        rows = slice(start, stop)
        return Records(self.outer[rows], self.inner[rows], self.positive[rows], self.negative[rows])


class SortedRuns:
    """Rows of all ranks by two keys. Collective but for `add`.

    Args:
        folder: where runs are written; all ranks see the same.
        name: of these runs in the folder.
        here: this rank.
        run_rows: rows that are held before they are written, and while runs are merged.
    """

    def __init__(self, folder: Path, name: str, here: Session, run_rows: int = RUN_ROWS) -> None:
        self._folder, self._name, self._here, self._run_rows = folder, name, here, run_rows
        self._held: list[Records] = []
        self._num_held = 0
        self._written: list[str] = []

    def add(self, records: Records) -> None:
        """Take rows in any order."""
        self._held.append(records)
        self._num_held += len(records.outer)
        if self._num_held >= self._run_rows:
            self._write()

    def share(self) -> list[Records]:
        """This rank's range of the first key in each run of any rank: in order, not in memory. Collective."""
        if self._num_held:
            self._write()
        runs = [self._open(name) for names in self._here.gather(self._written) for name in names]
        edges = self._edges()
        rank, last = self._here.global_rank, self._here.world_size - 1
        found = []
        for run in runs:
            start = np.searchsorted(run.outer, edges[rank - 1]) if rank > 0 else 0
            stop = np.searchsorted(run.outer, edges[rank]) if rank < last else len(run.outer)
            found.append(run.part(int(start), int(stop)))
        return [each for each in found if len(each.outer)]

    def merged(self, share: list[Records]) -> Iterator[Records]:
        """The rows of a share in order of their keys, each pair of keys once, some rows at a time."""
        block = max(1, self._run_rows // max(1, len(share)))
        while share:
            heads = [run.part(0, block) for run in share]
            ends = [_last(head) for head, run in zip(heads, share, strict=True) if len(run.outer) > block]
            counts = [_count_up_to(head, min(ends)) if ends else len(head.outer) for head in heads]
            yield _added([head.part(0, count) for head, count in zip(heads, counts, strict=True)])
            rests = (run.part(count, len(run.outer)) for run, count in zip(share, counts, strict=True))
            share = [rest for rest in rests if len(rest.outer)]

    def _write(self) -> None:
        run = _added(self._held)
        self._held, self._num_held = [], 0
        name = f"{self._name}-{self._here.global_rank}-{len(self._written)}.npy"
        np.save(self._folder / name, np.stack([column.view(np.int64) for column in run]))
        self._written.append(name)

    def _open(self, name: str) -> Records:
        outer, inner, positive, negative = np.load(self._folder / name, mmap_mode="r")
        return Records(outer, inner, positive.view(np.float64), negative.view(np.float64))

    def _edges(self) -> Int:
        """First keys [world_size - 1] at which the next rank's range begins."""
        each = max(1, _SAMPLES // max(1, len(self._written)))
        own = [self._open(name).outer for name in self._written]
        places = [np.linspace(0, len(keys) - 1, min(each, len(keys))).astype(np.int64) for keys in own]
        samples = [keys[at] for keys, at in zip(own, places, strict=True)]
        gathered = self._here.gather(np.concatenate([np.empty(0, np.int64), *samples]))
        keys = np.sort(np.concatenate(gathered))
        size = self._here.world_size
        return keys[np.arange(1, size) * len(keys) // size] if len(keys) else np.zeros(size - 1, np.int64)


def key_of(scores: npt.NDArray[np.float32]) -> Int:
    """Integers [n] in the order of finite scores; equal for equal ones, 0 and -0 too."""
    bits = np.ascontiguousarray(scores, np.float32).view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def _added(parts: list[Records]) -> Records:
    """All rows in order of their keys, those of equal keys added up."""
    outer, inner, positive, negative = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.lexsort((inner, outer))
    outer, inner = outer[order], inner[order]
    is_new = np.ones(len(order), np.bool_)
    is_new[1:] = (outer[1:] != outer[:-1]) | (inner[1:] != inner[:-1])
    starts = np.flatnonzero(is_new)
    weights = (np.add.reduceat(column[order], starts) for column in (positive, negative))
    return Records(outer[starts], inner[starts], *weights)


def _last(records: Records) -> tuple[int, int]:
    return int(records.outer[-1]), int(records.inner[-1])


def _count_up_to(records: Records, keys: tuple[int, int]) -> int:
    """How many rows have keys up to the given ones."""
    start = int(np.searchsorted(records.outer, keys[0], "left"))
    stop = int(np.searchsorted(records.outer, keys[0], "right"))
    return start + int(np.searchsorted(records.inner[start:stop], keys[1], "right"))

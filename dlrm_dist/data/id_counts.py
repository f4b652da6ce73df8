"""How often each id of a column comes, in bounded memory, whatever the size of its table."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dlrm_dist.data.runs import Run, merged, run_of

Ids = npt.NDArray[Any]
"""int32 or int64 [n], none negative."""
TABLE_IDS = 1 << 26
"""A table of at most so many ids has a counter for each: 8 bytes an id, 512 MB. 40,000,000 are MLPerf's largest."""
SEEN_IDS = 1 << 22
"""Of a larger table, so many different ids are counted at a time, by sorting: 80 bytes each, 340 MB; where more are
seen, the column is read again for each part of them."""
_MIX = np.uint64(0x9E3779B97F4A7C15)
_MERGE_IDS, _CHUNK = 1 << 20, 1 << 20


class IdCounts(NamedTuple):
    """What was counted.

    Attributes:
        total: of all ids.
        seen: the different ones.
        top: counts of the most frequent ones, falling.
        of: the counts of the ids that were asked for.
    """

    total: int
    seen: int
    top: list[int]
    of: dict[int, int]


def count_ids(pieces: Callable[[], Iterable[Ids]], table: int, tops: int, asked: set[int]) -> IdCounts:
    """Count a column's ids, exactly.

    Args:
        pieces: gives the column's ids; called again where they are counted in several parts.
        table: rows of its table: ids are below.
        tops: how many of the most frequent are wanted.
        asked: ids whose own counts are wanted.
    """
    if table <= TABLE_IDS:
        return _counted_by_table(pieces(), table, tops, asked)
    found = IdCounts(0, 0, [], dict.fromkeys(asked, 0))
    parts = [(1, 0)]
    while parts:
        modulus, rest = parts.pop()
        counted = _counted_part(pieces(), modulus, rest)
        if counted is None:  # too many different ones: two halves instead
            parts += [(2 * modulus, rest), (2 * modulus, rest + modulus)]
        else:
            found = _with_part(found, counted, tops)
    return found


def _counted_by_table(pieces: Iterable[Ids], table: int, tops: int, asked: set[int]) -> IdCounts:
    counts = np.zeros(table, np.int64)
    for piece in pieces:
        np.add.at(counts, piece, 1)
    top = np.empty(0, np.int64)
    for start in range(0, table, _CHUNK):  # a copy of all counters would double the memory
        top = np.sort(np.concatenate([top, counts[start : start + _CHUNK]]))[-tops:]
    of = {id_: int(counts[id_]) for id_ in asked}
    return IdCounts(int(counts.sum()), int(np.count_nonzero(counts)), top[::-1].tolist(), of)


def _counted_part(pieces: Iterable[Ids], modulus: int, rest: int) -> Run | None:
    """The ids of a part, those whose hash leaves the rest by a power of 2; None if there are too many."""
    have = Run(np.empty(0, np.int64), np.empty(0, np.int64))
    waiting: list[Run] = []
    for piece in _part_of(pieces, modulus, rest):
        waiting.append(run_of(piece.astype(np.int64)))
        if sum(len(run.values) for run in waiting) > max(_MERGE_IDS, len(have.values)):
            have, waiting = merged([have, *waiting]), []
            if len(have.values) > SEEN_IDS:
                return None
    have = merged([have, *waiting])
    return have if len(have.values) <= SEEN_IDS else None


def _part_of(pieces: Iterable[Ids], modulus: int, rest: int) -> Iterator[Ids]:
    for piece in pieces:
        if modulus > 1:  # by well mixed bits: ids themselves may all be even
            mixed = (piece.astype(np.uint64) * _MIX) >> np.uint64(32)
            piece = piece[mixed & np.uint64(modulus - 1) == rest]
        yield piece


def _with_part(found: IdCounts, counted: Run, tops: int) -> IdCounts:
    top = sorted([*found.top, *np.sort(counted.counts)[-tops:].tolist()], reverse=True)[:tops]
    of = {id_: before + int(counted.counts[counted.values == id_].sum()) for id_, before in found.of.items()}
    return IdCounts(found.total + int(counted.counts.sum()), found.seen + len(counted.values), top, of)

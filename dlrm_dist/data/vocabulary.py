"""Category values and their ids: numbers to ids by a hash or by a vocabulary.

A raw category column is uint32 (Criteo's) or uint64, null where the value is missing; or lists of them, without nulls.
A missing value is a value of its own: it differs from every number.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dlrm_dist.errors import UserError

Encoder = Callable[[pa.Array], pa.Array]
Values = npt.NDArray[Any]
"""uint32 or uint64 [n]."""
_MIX = 0x9E3779B97F4A7C15
"""2^64 over the golden ratio: its product with a value has its bits well mixed at the top."""
_LEAST_RUN, _MOST_PARTS = 1 << 16, 1 << 12
_COUNTED_BYTES, _MERGED_BYTES, _KEPT_BYTES = 32, 48, 40
"""Memory that counting takes for each value at a time, for each distinct value of all, and for each one kept."""


def id_type(rows: int) -> pa.DataType:
    """The type of a column of ids 0 to `rows` - 1: int32, or int64 where they need it."""
    return pa.int32() if rows <= 1 << 31 else pa.int64()


def hash_encoder(rows: int, missing: int) -> Encoder:
    """The map of raw values [n] to ids [n]: value modulo `rows`, in 64 bits; `missing` for a missing value."""

    def encode(values: pa.Array) -> pa.Array:
        numbers = _numbers(values)
        if rows <= np.iinfo(numbers.dtype).max:  # NumPy divides many numbers at once, but has no such remainder
            each = numbers.dtype.type(rows)
            numbers = numbers - numbers // each * each
        ids = pa.array(numbers).cast(id_type(rows))
        return pc.if_else(values.is_valid(), ids, pa.scalar(missing % rows, ids.type)) if values.null_count else ids

    return encode


def encoded(column: pa.Array, encode: Encoder) -> pa.Array:
    """The ids of a raw column, those of each list in a list."""
    if not pa.types.is_list(column.type):
        return encode(column)
    return pa.ListArray.from_arrays(_offsets(column), encode(column.flatten()))


def _offsets(column: pa.ListArray) -> pa.Array:
    return pc.subtract(column.offsets, column.offsets[0])


def _numbers(values: pa.Array) -> Values:
    """A raw column's values; missing ones as any number."""
    buffer = values.buffers()[1]
    return np.frombuffer(buffer, values.type.to_pandas_dtype())[values.offset : values.offset + len(values)]


class Counts(NamedTuple):
    """How often each value was seen: values [n] in rising order, counts int64 [n], and that of missing values."""

    values: Values
    counts: npt.NDArray[np.int64]
    missing: int


def count_values(arrays: Callable[[], Iterable[pa.Array]], min_count: int, budget: int) -> Counts:
    """The values of a column that are there `min_count` times or more, in bounded memory.

    Values are sorted as many at a time as fit, and what the sorted runs hold is merged. Where the distinct values of
    all rows do not fit, the values are counted in two or more parts, by a hash of the value.

    Args:
        arrays: gives the column's arrays, raw or lists of raw values; called again for each part.
        min_count: how often a value must be seen.
        budget: bytes to use.

    Raises:
        MemoryError: the values that are kept do not fit alone.
    """
    missing = sum(array.null_count for array in arrays())
    parts, part, kept = 1, 0, list[Counts]()
    while part < parts:
        found = _count_part(
            arrays, min_count, budget - _KEPT_BYTES * sum(len(each.values) for each in kept), parts, part
        )
        if found is None:  # half of what was left, so what was counted already stays as it is
            parts, part = parts * 2, part * 2
            continue
        kept.append(found)
        part += 1
    order = np.argsort(np.concatenate([each.values for each in kept])) if len(kept) > 1 else slice(None)
    values, counts = (np.concatenate([each[i] for each in kept])[order] for i in (0, 1))
    return Counts(values, counts, missing)


def _count_part(
    arrays: Callable[[], Iterable[pa.Array]], min_count: int, budget: int, parts: int, part: int
) -> Counts | None:
    """The values of one part of all; None if they do not fit."""
    if budget <= 0 or parts > _MOST_PARTS:
        raise MemoryError
    runs: list[Counts] = []
    for values in _pieces(arrays(), parts, part, max(_LEAST_RUN, budget // (2 * _COUNTED_BYTES))):
        runs.append(_run(values))
        if _distinct(runs) * _MERGED_BYTES > budget // 2:
            runs = [_merged(runs)]
            if _distinct(runs) * _MERGED_BYTES > budget // 2 and _distinct(runs) > _LEAST_RUN:
                return None
    found = _merged(runs)
    frequent = found.counts >= min_count
    return Counts(found.values[frequent], found.counts[frequent], 0)


def _pieces(arrays: Iterable[pa.Array], parts: int, part: int, size: int) -> Iterator[Values]:
    """The values of one part that are not missing, about `size` at a time."""
    waiting: list[Values] = []
    have = 0
    for array in arrays:
        values = _numbers(pc.drop_null(array.flatten() if pa.types.is_list(array.type) else array))
        if parts > 1:
            mixed = values.astype(np.uint64) * np.uint64(_MIX)
            values = values[(mixed >> np.uint64(52)) * np.uint64(parts) // np.uint64(_MOST_PARTS) == part]
        waiting.append(values)
        have += len(values)
        if have >= size:
            yield np.concatenate(waiting)
            waiting, have = [], 0
    if waiting:
        yield np.concatenate(waiting)


def _run(values: Values) -> Counts:
    """The counts of values [n], sorted in place: 6 ns each, where a hash table takes 50 to 100 of wide ones."""
    values.sort()
    starts = np.flatnonzero(values[1:] != values[:-1]) + 1
    starts = np.concatenate([[0], starts]) if len(values) else starts
    return Counts(values[starts], np.diff(starts, append=len(values)), 0)


def _merged(runs: list[Counts]) -> Counts:
    """One run of all: counts of equal values are added."""
    if len(runs) == 1:
        return runs[0]
    values, counts = np.concatenate([run.values for run in runs]), np.concatenate([run.counts for run in runs])
    order = np.argsort(values)
    values, counts = values[order], counts[order]
    starts = np.flatnonzero(values[1:] != values[:-1]) + 1
    starts = np.concatenate([[0], starts]) if len(values) else starts
    return Counts(values[starts], np.add.reduceat(counts, starts) if len(starts) else counts, 0)


def _distinct(runs: list[Counts]) -> int:
    return sum(len(run.values) for run in runs)


class Vocabulary:
    """Ids of one column: 0 for every value seen fewer than `min_count` times or never, the others from 1.

    They are numbered by falling count, equal counts by rising value, a missing value before all others.
    """

    def __init__(self, table: pa.Table) -> None:
        """Take the kept values (uint32 or uint64, null for a missing one) and counts in the order of their ids."""
        self.table, self.rows = table, 1 + table.num_rows

    @staticmethod
    def of(found: Counts, min_count: int) -> "Vocabulary":
        """The vocabulary of counted values; a missing one has an id if it was seen `min_count` times."""
        order = np.argsort(-found.counts, kind="stable")
        values, counts = pa.array(found.values[order]), found.counts[order]
        if found.missing >= min_count:
            place = int(np.searchsorted(-counts, -found.missing))
            counts = np.insert(counts, place, found.missing)
            values = pa.concat_arrays([values[:place], pa.nulls(1, values.type), values[place:]])
        return Vocabulary(pa.table({"value": values, "count": counts}))

    def encoder(self) -> Encoder:
        """The map of raw values [n] to ids int32 [n]: a hash table of 11 to 22 bytes a value."""
        values = self.table["value"].combine_chunks()
        numbers = _numbers(values)
        missing = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0]) if values.null_count else -1
        bits = max(1, int(len(numbers) * 4 / 3).bit_length())
        keys, ids = np.zeros(1 << bits, numbers.dtype), np.zeros(1 << bits, np.int32)
        _fill(keys, ids, np.uint64(64 - bits), numbers, missing)

        def encode(raw: pa.Array) -> pa.Array:
            wanted = _numbers(raw).astype(numbers.dtype, copy=False)
            found = np.empty(len(wanted), np.int32)
            _find(keys, ids, np.uint64(64 - bits), wanted, found)
            if not raw.null_count:
                return pa.array(found)
            return pc.if_else(raw.is_valid(), pa.array(found), pa.scalar(missing + 1, pa.int32()))

        return encode

    @staticmethod
    def read(path: Path) -> "Vocabulary":
        """Read what `write` wrote, ids as they were.

        Raises:
            UserError: the file is missing, or it is no vocabulary.
        """
        try:
            table = pq.read_table(path)
            wide = table.schema.field("value").type == pa.uint64()
            table = table.cast(pa.schema([("value", pa.uint64() if wide else pa.uint32()), ("count", pa.int64())]))
        except FileNotFoundError:
            raise UserError(f"{path}: no such vocabulary; allowed: a folder with one for each category") from None
        except (OSError, ValueError, KeyError) as error:  # pyarrow's own errors derive from the first two
            reason = str(error).splitlines()[0]
            raise UserError(f"{path}: cannot be read as a vocabulary: {reason}; prepare its dataset again") from None
        if pc.count_distinct(table["value"], mode="all").as_py() != table.num_rows:
            raise UserError(f"{path}: holds a value twice; allowed: each once; prepare its dataset again")
        return Vocabulary(table)

    def write(self, path: Path) -> None:
        """Write the kept values and their counts as Parquet, which appears when it is complete: row i has id i + 1."""
        unfinished = path.with_suffix(".tmp")
        pq.write_table(self.table, unfinished, compression="zstd")
        unfinished.rename(path)


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _fill(keys: Values, ids: npt.NDArray[np.int32], shift: np.uint64, values: Values, missing: int) -> None:
    """Put values [n] with the ids 1 to n into an empty table [2^k]; an id 0 is a free place."""
    mask = np.uint64(len(keys) - 1)
    for i in range(len(values)):
        if i == missing:
            continue
        place = (np.uint64(values[i]) * np.uint64(_MIX)) >> shift
        while ids[place]:
            place = (place + np.uint64(1)) & mask
        keys[place], ids[place] = values[i], i + 1


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _find(
    keys: Values, ids: npt.NDArray[np.int32], shift: np.uint64, values: Values, found: npt.NDArray[np.int32]
) -> None:
    """The ids of values [n]; 0 for those that are not in the table."""
    mask = np.uint64(len(keys) - 1)
    for i in range(len(values)):
        place = (np.uint64(values[i]) * np.uint64(_MIX)) >> shift
        while ids[place] and keys[place] != values[i]:
            place = (place + np.uint64(1)) & mask
        found[i] = ids[place]

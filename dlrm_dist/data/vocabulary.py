"""Category values and their ids: numbers to ids by a hash or by a vocabulary.

A raw category column is uint32 (Criteo's) or uint64, null where the value is missing; or lists of them, without nulls.
A missing value is a value of its own: it differs from every number.
"""

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
GROUP_ROWS = 1 << 20
"""Rows of a row group of a vocabulary's file."""


def folder_of(given: Path) -> Path:
    """The folder of vocabularies that a dataset has, or that is given itself."""
    inside = given / "vocabulary"
    return inside if inside.is_dir() else given


def file_of(dataset: Path, column: str) -> Path:
    """Where a dataset has a column's vocabulary, if the column has one."""
    return dataset / "vocabulary" / f"{column}.parquet"


def id_type(rows: int) -> pa.DataType:
    """The type of a column of ids 0 to `rows` - 1: int32, or int64 where they need it."""
    return pa.int32() if rows <= 1 << 31 else pa.int64()


def hash_encoder(rows: int, missing: int) -> Encoder:
    """The map of raw values [n] to ids [n]: value modulo `rows`, in 64 bits; `missing` for a missing value."""

    def encode(values: pa.Array) -> pa.Array:
        numbers = numbers_of(values)
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


def numbers_of(values: pa.Array) -> Values:
    """A raw column's values; missing ones as any number."""
    return np.frombuffer(values.buffers()[1] or b"", values.type.to_pandas_dtype())[
        values.offset : values.offset + len(values)
    ]


class Vocabulary:
    """Ids of one column: 0 for every value seen fewer than `min_count` times or never, the others from 1.

    They are numbered by falling count, equal counts by rising value, a missing value before all others. They are a
    Parquet file: row i has the value (uint32 or uint64, null for a missing one) and the count of the id i + 1.
    """

    def __init__(self, path: Path) -> None:
        """Open the file."""
        self._path = path
        self.rows = 1 + pq.read_metadata(path).num_rows

    def encoders(self, budget: int) -> Iterator[Encoder]:
        """Maps of raw values [n] to ids [n], one after another: each of as many values as fit, 0 for all others."""
        with pq.ParquetFile(self._path) as file:
            groups = file.num_row_groups
            bits = _table_bits(file, id_type(self.rows), budget)
            each = max(1, (3 << bits) // 4 // GROUP_ROWS)
            for first in range(0, max(1, groups), each):
                yield self._encoder(file, range(first, min(first + each, groups)), bits)

    def _encoder(self, file: pq.ParquetFile, groups: range, bits: int) -> Encoder:
        """The map of the values of some row groups: a hash table of 11 to 32 bytes a value."""
        rows = sum(file.metadata.row_group(group).num_rows for group in groups)
        bits = min(bits, max(1, int(rows * 4 / 3).bit_length()))
        keys = np.zeros(1 << bits, file.schema_arrow.field("value").type.to_pandas_dtype())
        ids = np.zeros(1 << bits, id_type(self.rows).to_pandas_dtype())
        missing = 0
        for group in groups:
            values, first = file.read_row_group(group, ["value"])["value"].combine_chunks(), 1 + group * GROUP_ROWS
            null = int(pc.index(values.is_null(), True).as_py()) if values.null_count else -1
            missing = first + null if null >= 0 else missing
            _fill(keys, ids, np.uint64(64 - bits), numbers_of(values), null, first)

        def encode(raw: pa.Array) -> pa.Array:
            wanted = numbers_of(raw)
            found = np.empty(len(wanted), ids.dtype)
            _find(keys, ids, np.uint64(64 - bits), wanted, found)
            if not raw.null_count:
                return pa.array(found)
            return pc.if_else(raw.is_valid(), pa.array(found), pa.scalar(missing, pa.from_numpy_dtype(ids.dtype)))

        return encode

    @staticmethod
    def read(source: Path, copy: Path, budget: int) -> "Vocabulary":
        """Copy what was written, ids as they were, and open the copy.

        Raises:
            UserError: the file is missing, or it is no vocabulary.
        """
        try:
            _copy(source, copy)
        except FileNotFoundError:
            raise UserError(f"{source}: no such vocabulary; allowed: a folder with one for each category") from None
        except (OSError, ValueError, KeyError) as error:  # pyarrow's own errors derive from the first two
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            reason = str(error).splitlines()[0]
            raise UserError(f"{source}: cannot be read as a vocabulary: {reason}; prepare its dataset again") from None
        made = Vocabulary(copy)
        if not made._is_consistent(budget):
            raise UserError(f"{source}: holds a value twice; allowed: each once; prepare its dataset again")
        return made

    def _is_consistent(self, budget: int) -> bool:
        """Whether each value has its own id and no other."""
        for encode in self.encoders(budget):
            with pq.ParquetFile(self._path) as file:
                for group in range(file.num_row_groups):
                    values = file.read_row_group(group, ["value"])["value"].combine_chunks()
                    found = encode(values).to_numpy()
                    own = np.arange(1, 1 + len(values)) + group * GROUP_ROWS
                    if np.any((found != 0) & (found != own)):
                        return False
        return True

    def move(self, path: Path) -> None:
        """Move the file to its place."""
        self._path.rename(path)
        self._path = path


def _table_bits(file: pq.ParquetFile, ids: pa.DataType, budget: int) -> int:
    """The size of the largest table within so many bytes, as a power of two: for a row group at least."""
    each = (file.schema_arrow.field("value").type.bit_width + ids.bit_width) // 8
    return max((budget // each).bit_length() - 1, int(GROUP_ROWS * 4 / 3).bit_length())


def _copy(source: Path, copy: Path) -> None:
    """Copy a vocabulary in its types and row groups."""
    with pq.ParquetFile(source) as file:
        wide = file.schema_arrow.field("value").type == pa.uint64()
        schema = pa.schema([("value", pa.uint64() if wide else pa.uint32()), ("count", pa.int64())])
        rows, waiting, written = file.metadata.num_rows, list[pa.Table](), 0
        with pq.ParquetWriter(copy, schema, compression="zstd") as out:
            if not rows:
                out.write_table(schema.empty_table(), row_group_size=GROUP_ROWS)
            for batch in file.iter_batches(GROUP_ROWS):
                waiting.append(pa.Table.from_batches([batch]).cast(schema))
                have = sum(table.num_rows for table in waiting)
                if have >= GROUP_ROWS or written + have == rows:
                    table = pa.concat_tables(waiting)
                    out.write_table(table[:GROUP_ROWS], row_group_size=GROUP_ROWS)
                    waiting, written = [table[GROUP_ROWS:]], written + min(have, GROUP_ROWS)


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _fill(keys: Values, ids: npt.NDArray[Any], shift: np.uint64, values: Values, null: int, first: int) -> None:
    """Put values [n] with the ids from `first` on into a table [2^k]; an id 0 is a free place."""
    mask = np.uint64(len(keys) - 1)
    for i in range(len(values)):
        if i == null:
            continue
        place = (np.uint64(values[i]) * np.uint64(_MIX)) >> shift
        while ids[place]:
            place = (place + np.uint64(1)) & mask
        keys[place], ids[place] = values[i], first + i


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _find(keys: Values, ids: npt.NDArray[Any], shift: np.uint64, values: Values, found: npt.NDArray[Any]) -> None:
    """The ids of values [n]; 0 for those that are not in the table."""
    mask = np.uint64(len(keys) - 1)
    for i in range(len(values)):
        place = (np.uint64(values[i]) * np.uint64(_MIX)) >> shift
        while ids[place] and keys[place] != values[i]:
            place = (place + np.uint64(1)) & mask
        found[i] = ids[place]

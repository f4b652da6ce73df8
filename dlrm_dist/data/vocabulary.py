"""Category values and their ids: numbers to ids by a hash or by a vocabulary.

A raw category column is uint32 with nulls where the value is missing. A missing value is a value of its own: it differs
from every hexadecimal one.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dlrm_dist.errors import UserError

MISSING = 1 << 32
"""What a missing value counts as before the hash: the first number that 8 hexadecimal digits cannot write."""
Encoder = Callable[[pa.Array], pa.Array]
_COUNTS = pa.schema([("value", pa.uint32()), ("count", pa.int64())])
_COMPACT_ROWS = 1 << 20


def id_type(rows: int) -> pa.DataType:
    """The type of a column of ids 0 to `rows` - 1: int32, or int64 where they need it."""
    return pa.int32() if rows <= 1 << 31 else pa.int64()


def hash_encoder(rows: int) -> Encoder:
    """The map of raw values uint32 [n] to ids [n]: value modulo `rows`, in 64 bits; `MISSING` for a missing value."""

    def encode(values: pa.UInt32Array) -> pa.Array:
        numbers = pc.fill_null(values, 0).to_numpy()
        if rows < MISSING:  # NumPy divides many numbers at once, but has no such remainder
            numbers = numbers - numbers // np.uint32(rows) * np.uint32(rows)
        ids = pa.array(numbers).cast(id_type(rows))
        return pc.if_else(values.is_valid(), ids, pa.scalar(MISSING % rows, ids.type)) if values.null_count else ids

    return encode


class ValueCounts:
    """How often each value of one column was seen; memory grows with the distinct values, not with the rows."""

    def __init__(self) -> None:
        self._counts = _COUNTS.empty_table()
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0

    def add(self, values: pa.Array) -> None:
        """Count raw values uint32 [n]."""
        found = pc.value_counts(values)
        self._waiting.append(pa.table([found.field("values"), found.field("counts")], schema=self._counts.schema))
        self._waiting_rows += len(found)
        if self._waiting_rows > max(_COMPACT_ROWS, len(self._counts)):
            self.table()

    def table(self) -> pa.Table:
        """Value (uint32, null where missing) and count (int64) of every value seen, in no particular order."""
        if self._waiting:
            every = pa.concat_tables([self._counts, *self._waiting])
            summed = every.group_by("value", use_threads=False).aggregate([("count", "sum")])
            self._counts = summed.rename_columns({"count_sum": "count"}).select(["value", "count"])
            self._waiting, self._waiting_rows = [], 0
        return self._counts


class Vocabulary:
    """Ids of one column: 0 for every value seen fewer than `min_count` times or never, the others from 1.

    They are numbered by falling count, equal counts by rising value, a missing value before all others.
    """

    def __init__(self, table: pa.Table) -> None:
        """Take the kept values (uint32, null for a missing one) and their counts in the order of their ids."""
        self.table, self.rows = table, 1 + table.num_rows
        self._values = table["value"].combine_chunks()

    @staticmethod
    def of(counts: pa.Table, min_count: int) -> "Vocabulary":
        """The vocabulary of the values that were seen `min_count` times or more."""
        kept = counts.filter(pc.field("count") >= min_count)
        order = pc.sort_indices(kept, [("count", "descending", "at_end"), ("value", "ascending", "at_start")])
        return Vocabulary(kept.take(order).combine_chunks())

    def encode(self, values: pa.Array) -> pa.Array:
        """Raw values uint32 [n] as ids int32 [n]; each call costs time for the vocabulary, so give it many values."""
        index = pc.index_in(values, value_set=self._values)
        return pc.fill_null(pc.add(index, pa.scalar(1, pa.int32())), 0)

    @staticmethod
    def read(path: Path) -> "Vocabulary":
        """Read what `write` wrote, ids as they were.

        Raises:
            UserError: the file is missing, or it is no vocabulary.
        """
        try:
            table = pq.read_table(path).cast(_COUNTS)
        except FileNotFoundError:
            raise UserError(f"{path}: no such vocabulary; allowed: a folder with one for each category") from None
        except (OSError, ValueError) as error:  # pyarrow's own errors derive from these two
            reason = str(error).splitlines()[0]
            raise UserError(f"{path}: cannot be read as a vocabulary: {reason}; prepare its dataset again") from None
        if pc.count_distinct(table["value"], mode="all").as_py() != table.num_rows:
            raise UserError(f"{path}: holds a value twice; allowed: each once; prepare its dataset again")
        return Vocabulary(table)

    def write(self, path: Path) -> None:
        """Write the kept values and their counts as Parquet: row i has id i + 1."""
        pq.write_table(self.table, path, compression="zstd")


@dataclass(frozen=True)
class Coding:
    """All category columns: their numbers of ids, and their encoders where raw values are not ids already."""

    rows: dict[str, int]
    encoders: dict[str, Encoder]
    searches: bool = False
    """Whether an encoder's call costs time for all values that it knows."""

    def encode(self, table: pa.Table, order: npt.NDArray[np.int64] | None, pool: Executor) -> pa.Table:
        """The table with ids for raw values, its rows taken in `order` (int64 [rows]; None: as they are)."""
        take = None if order is None else pa.array(order)

        def column(name: str) -> pa.Array:
            values = table[name].combine_chunks()
            values = values if take is None else values.take(take)
            return self.encoders[name](values) if name in self.encoders else values

        return pa.table(list(pool.map(column, table.column_names)), names=table.column_names)


class Counting:
    """The value counts of all category columns, and then their vocabularies."""

    def __init__(self, names: Iterable[str]) -> None:
        self._counts = {name: ValueCounts() for name in names}

    def add(self, table: pa.Table, pool: Executor) -> None:
        """Count a table of training rows."""
        list(pool.map(lambda name: self._counts[name].add(table[name]), self._counts))

    def finish(self, min_count: int, folder: Path) -> Coding:
        """Make the vocabularies, and write each as `folder`/COLUMN.parquet."""
        return coding_of(
            {name: Vocabulary.of(self._counts.pop(name).table(), min_count) for name in list(self._counts)}, folder
        )


def read_coding(given: Path, names: Iterable[str], folder: Path) -> Coding:
    """The coding by the vocabularies of another dataset (its folder, or the one within), which go into `folder` too.

    Raises:
        UserError: one is missing or cannot be read.
    """
    source = given / "vocabulary" if (given / "vocabulary").is_dir() else given
    return coding_of({name: Vocabulary.read(source / f"{name}.parquet") for name in names}, folder)


def coding_of(vocabularies: dict[str, Vocabulary], folder: Path) -> Coding:
    """The coding by column, after writing each vocabulary as `folder`/COLUMN.parquet."""
    folder.mkdir()
    for name, vocabulary in vocabularies.items():
        vocabulary.write(folder / f"{name}.parquet")
    rows = {name: vocabulary.rows for name, vocabulary in vocabularies.items()}
    return Coding(rows, {name: vocabulary.encode for name, vocabulary in vocabularies.items()}, searches=True)

"""Parquet files of other origin, whose columns a schema file maps: TOML, see `ParquetSchema`.

Integers, strings, binaries, booleans and dictionaries of them can be categories; lists of them are multi-hot columns.
Integers are taken as 64 bits, strings by a 64-bit hash (FNV-1a).
"""

import itertools
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dlrm_dist.data.files import File
from dlrm_dist.data.schema import LABEL, RAW_IDS
from dlrm_dist.data.sources import Column, Columns, Ids, OnBadRow, Parsed, Where, changed, float32, judged, rows_of
from dlrm_dist.data.vocabulary import encoded, id_type
from dlrm_dist.errors import UserError, first_problem

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")
"""What columns of a dataset may be called: a category's name is that of a file too."""
ForeignDense = Literal["log1p", "log3", "none"]
_READ_ROWS, _READ_BYTES, _BUFFER = 1 << 16, 8 << 20, 1 << 20
"""The most rows and (about) bytes that are decoded at a time, and the bytes of a file read at a time for a column."""
MISSING = 1 << 64
"""What a missing value counts as before the hash: the first number that 64 bits cannot hold."""
MISSING_RAW = RAW_IDS - 1
"""The id of a missing value among raw ids, their last."""


class CategorySchema(BaseModel):
    """How one category is made: from which `column` (its own name if not given), and what differs from the options."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    column: str | None = None
    ids: Ids | None = None
    rows: int | None = Field(default=None, gt=0, lt=1 << 40)
    min_count: int | None = Field(default=None, gt=0)


class ParquetSchema(BaseModel):
    """The schema file: the columns for label, dense features, categories and, if there is one, the rows' weight."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    label: str
    dense: tuple[str, ...] = ()
    categories: dict[str, CategorySchema] = Field(min_length=1)
    weight: str | None = None


def read_schema(path: Path) -> ParquetSchema:
    """Read a schema file.

    Raises:
        UserError: it cannot be read, or a key is wrong or missing.
    """
    way_out = "allowed: label, dense = [...], weight, and [categories] with a table for each; mend it"
    try:
        found = ParquetSchema.model_validate(tomllib.loads(path.read_text()))
    except ValidationError as error:
        raise UserError(f"{path}: {first_problem(error)}; {way_out}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read as a schema: {reason}; {way_out}") from None
    names = [LABEL, *found.dense, *found.categories, *([] if found.weight is None else [found.weight])]
    wrong = next((name for name in names if not _NAME.fullmatch(name)), None)
    if wrong is not None:
        raise UserError(
            f"{path}: column {wrong[:60]!r} cannot have this name in a dataset; allowed: 1 to 100 of A-Z, a-z, 0-9, _, "
            "- and ., no dot first; rename it (a category reads any column: NAME = { column = ... })"
        )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"{path}: column {twice} is named twice; allowed: each name once; rename one")
    return found


class ParquetSource:
    """One file; see `sources.Source`."""

    seekable = True

    def __init__(self, file: File, schema: ParquetSchema, dense: ForeignDense, on_bad_row: OnBadRow) -> None:
        """Open the file and check that it has the columns.

        Raises:
            UserError: it cannot be read, or a column is missing or of a type that cannot be used.
        """
        self.name, self._file, self._schema, self._dense, self._on_bad_row = file.name, file, schema, dense, on_bad_row
        with self._open() as parquet:
            groups = [parquet.metadata.row_group(i).num_rows for i in range(parquet.metadata.num_row_groups)]
            self._names = parquet.schema_arrow.names
            self._types = {field.name: field.type for field in parquet.schema_arrow}
        self._starts = [0, *itertools.accumulate(groups)]
        self.rows = self._starts[-1]
        if not self.rows:
            raise UserError(f"{self.name}: is empty; allowed: at least one row; remove it from the sources")
        self._check_types()
        self.columns: Columns

    def _open(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self._file.open(), buffer_size=_BUFFER)
        except (OSError, ValueError) as error:  # pyarrow's own errors derive from these two
            reason = str(error).splitlines()[0]
            raise UserError(f"{self.name}: cannot be read: {reason}; allowed: readable Parquet; mend it") from None

    def raw_name(self, name: str) -> str:
        """The file's column for a category."""
        return self._schema.categories[name].column or name

    def is_multi_hot(self, name: str) -> bool:
        """Whether a category has lists."""
        return is_list(self._types[self.raw_name(name)])

    def _check_types(self) -> None:
        schema = self._schema
        check_types(self.name, self._types, schema, (schema.label, *([schema.weight] if schema.weight else [])))
        for name in (schema.label, *schema.dense, *map(self.raw_name, schema.categories), schema.weight or ""):
            if self._names.count(name) > 1:
                raise UserError(f"{self.name}: has {self._names.count(name)} columns {name}; allowed: one; rename one")

    def read(self, bounds: Sequence[int]) -> Iterator[Parsed]:
        """See `sources.Source`."""
        schema = self._schema
        names = {schema.label, *schema.dense, *map(self.raw_name, schema.categories)} | {schema.weight or schema.label}
        with self._open() as parquet:
            for group, (start, stop) in enumerate(itertools.pairwise(self._starts)):
                if stop <= bounds[0] or start >= bounds[-1]:
                    continue
                row = start
                for batch in self._batches(parquet, group, sorted(names)):
                    cuts = sorted({min(max(bound - row, 0), batch.num_rows) for bound in bounds})
                    for first, last in itertools.pairwise(cuts):
                        yield self._piece(batch[first:last], row + first)
                    row += batch.num_rows
                if row != stop:
                    raise changed(self.name)

    def _batches(self, parquet: pq.ParquetFile, group: int, names: list[str]) -> Iterator[pa.RecordBatch]:
        try:
            rows = _rows_at_a_time(parquet.metadata.row_group(group), names)
            for batch in parquet.iter_batches(rows, row_groups=[group], columns=names):
                step = max(1, _READ_BYTES * batch.num_rows // max(1, batch.nbytes))  # where its lists are long
                yield from (batch[start : start + step] for start in range(0, batch.num_rows, step))
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{self.name}: cannot be read: {reason}; allowed: readable Parquet; mend it") from None

    def _piece(self, batch: pa.RecordBatch, row: int) -> Parsed:
        schema = self._schema
        columns, bad, allowed = features(batch, schema, self.columns.categories, self._dense)
        label = _floats(batch[schema.label], math.nan)
        columns = {LABEL: pa.array((label == 1).astype(np.uint8)), **columns}
        bad = {LABEL: (label != 0) & (label != 1), **bad}
        allowed[LABEL] = "0 or 1"
        if schema.weight:
            weight = float32(_floats(batch[schema.weight], math.nan))
            bad[schema.weight] = ~(np.isfinite(weight) & (weight >= 0))
            columns[schema.weight] = pa.array(weight)
            allowed[schema.weight] = "finite numbers from 0 on, as float32"
        raw_names = {LABEL: schema.label} | {name: self.raw_name(name) for name in schema.categories}

        def value(name: str, at: int) -> str:
            return repr(batch[raw_names.get(name, name)][at].as_py())

        where = Where(self.name, row, value, allowed, frozenset(schema.dense))
        return judged(pa.table(columns), bad, self._on_bad_row, where)


def check_types(name: str, types: Mapping[str, pa.DataType], schema: ParquetSchema, more: tuple[str, ...]) -> None:
    """Check that rows have the columns of a schema's features, and `more` columns of numbers.

    Raises:
        UserError: a column is missing or of a type that cannot be used; `name` is what the message calls the rows.
    """
    wanted = [(column, _is_number, "numbers") for column in (*more, *schema.dense)]
    wanted += [
        (each.column or category, _is_category, "integers, strings, or lists of them")
        for category, each in schema.categories.items()
    ]
    for column, is_right, allowed in wanted:
        found = types.get(column)
        if found is None or not is_right(found):
            what = "is missing" if found is None else f"has {found}"
            raise UserError(f"{name}: column {column} {what}; allowed: {allowed}; mend the file or its schema")


Bad = dict[str, npt.NDArray[np.bool_]]
"""By column, where it has a bad value, bool [rows]."""


def features(
    batch: pa.RecordBatch, schema: ParquetSchema, categories: Sequence[Column], dense: ForeignDense
) -> tuple[dict[str, pa.Array], Bad, dict[str, str]]:
    """The features of raw rows: columns as `sources.Parsed` has them, where they are bad, and what is allowed."""
    bad, columns = Bad(), dict[str, pa.Array]()
    for name in schema.dense:
        values = _floats(batch[name], 0.0)
        scaled = _scaled(values, dense)
        bad[name] = ~(np.isfinite(values) & np.isfinite(scaled))
        columns[name] = pa.array(np.where(bad[name], _scaled(np.zeros(1), dense), scaled))
    for column in categories:
        raw = batch[schema.categories[column.name].column or column.name]
        columns[column.name], bad[column.name] = _category(raw, column)
    allowed = dict.fromkeys(schema.dense, "finite numbers, as float32, or nothing")
    return columns, bad, allowed | {each.name: f"ids 0 to {each.rows - 1}" for each in categories}


def columns_of(sources: Sequence[ParquetSource], schema: ParquetSchema, ids: Ids, rows: int, min_count: int) -> Columns:
    """The columns, which every source is told too; what the schema does not say of a category comes from the options.

    Raises:
        UserError: kept ids without a number of rows, or lists in some files only.
    """
    categories = []
    for name, each in schema.categories.items():
        how = each.ids or ids
        if how == "keep" and not each.rows:
            raise UserError(f"category {name}: kept ids need the rows of their table; give rows in the schema file")
        multi_hot = sources[0].is_multi_hot(name)
        other = next((source.name for source in sources if source.is_multi_hot(name) != multi_hot), None)
        if other:
            raise UserError(f"{other}: column {name} is a list only in some files; allowed: in all or none")
        size, missing = rows_of(how, each.rows or rows), MISSING_RAW if how == "raw" else MISSING
        categories.append(Column(name, how, size, each.min_count or min_count, missing, multi_hot))
    columns = Columns(schema.dense, tuple(categories), schema.weight)
    for source in sources:
        source.columns = columns
    return columns


def _rows_at_a_time(group: pq.RowGroupMetaData, names: list[str]) -> int:
    columns = [group.column(i) for i in range(group.num_columns)]
    columns = [each for each in columns if each.path_in_schema.split(".")[0] in names]
    size = sum(max(8 * each.num_values, each.total_uncompressed_size) for each in columns)
    return max(1, min(_READ_ROWS, _READ_BYTES * group.num_rows // max(1, size)))


def _is_number(type_: pa.DataType) -> bool:
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    return any(is_kind(type_) for is_kind in kinds)


def is_list(type_: pa.DataType) -> bool:
    """Whether a column has lists."""
    return pa.types.is_list(type_) or pa.types.is_large_list(type_)


def _is_category(type_: pa.DataType) -> bool:
    if is_list(type_):
        return _is_category(type_.value_type) and not pa.types.is_nested(type_.value_type)
    if pa.types.is_dictionary(type_):
        return _is_category(type_.value_type)
    return pa.types.is_integer(type_) or pa.types.is_boolean(type_) or _is_text(type_)


def _is_text(type_: pa.DataType) -> bool:
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(is_kind(type_) for is_kind in kinds)


def _floats(column: pa.Array, missing: float) -> npt.NDArray[np.float64]:
    return pc.fill_null(column.cast(pa.float64()), missing).to_numpy(zero_copy_only=False)


def _scaled(values: npt.NDArray[np.float64], dense: ForeignDense) -> npt.NDArray[np.float32]:
    """Numbers [n] after the transform; see `kaggle`."""
    if dense == "log1p":
        return float32(np.log1p(np.maximum(values, 0)))
    if dense == "log3":
        return float32(np.log(np.maximum(values, -2) + 3))
    return float32(values)


def _category(column: pa.Array, how: Column) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    """A category's raw values uint64 (or ids), and where they are impossible, bool [rows]."""
    if how.multi_hot:
        column = column.cast(pa.list_(column.type.value_type))
        lists = pc.fill_null(column, []) if column.null_count else column
        flat = lists.flatten()
        if flat.null_count:  # a missing value among others says nothing
            parents, valid = pc.list_parent_indices(lists).to_numpy(), flat.is_valid()
            lengths = np.bincount(parents[valid.to_numpy(zero_copy_only=False)], minlength=len(lists))
            offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
            lists = pa.ListArray.from_arrays(offsets, flat.filter(valid))
            flat = lists.flatten()
        _, wrong = _ids(flat, how)
        bad = np.zeros(len(lists), np.bool_)
        bad[pc.list_parent_indices(lists).to_numpy()[wrong]] = True
        return encoded(lists, lambda values: _ids(values, how)[0]), bad
    return _ids(column, how)


def _ids(values: pa.Array, how: Column) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    raw = _raw(values)
    if how.ids != "keep":
        return raw, np.zeros(len(raw), np.bool_)
    numbers = pc.fill_null(raw, MISSING - 1).to_numpy()
    bad = numbers >= np.uint64(how.rows)
    return pa.array(np.where(bad, 0, numbers).astype(id_type(how.rows).to_pandas_dtype())), bad


def _raw(values: pa.Array) -> pa.Array:
    """Values as uint64, null where missing: integers by their bits, texts by their hash."""
    if pa.types.is_dictionary(values.type):
        return _raw(values.dictionary).take(values.indices)
    if _is_text(values.type):
        values = values.cast(pa.large_binary())
        offsets = np.frombuffer(values.buffers()[1], np.int64)[values.offset : values.offset + len(values) + 1]
        data = np.frombuffer(values.buffers()[2] or b"", np.uint8)
        return pa.array(_hashed(offsets, data), mask=values.is_null().to_numpy(zero_copy_only=False))
    if not pa.types.is_uint64(values.type):
        numbers: npt.NDArray[Any] = pc.fill_null(values.cast(pa.int64()), 0).to_numpy()
    else:
        numbers = pc.fill_null(values, 0).to_numpy()
    return pa.array(numbers.view(np.uint64), mask=values.is_null().to_numpy(zero_copy_only=False))


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _hashed(offsets: npt.NDArray[np.int64], data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """FNV-1a's 64-bit hash of each text: bytes offsets[i] to offsets[i + 1] of `data`."""
    found = np.empty(len(offsets) - 1, np.uint64)
    for i in range(len(found)):
        state = np.uint64(0xCBF29CE484222325)
        for at in range(offsets[i], offsets[i + 1]):
            state = (state ^ np.uint64(data[at])) * np.uint64(0x100000001B3)
        found[i] = state
    return found

"""Raw rows in memory, as tables or dicts, parsed as a file of their format would be: values first, ids later."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dlrm_dist.data import kaggle, parquet
from dlrm_dist.data.options import CRITEO
from dlrm_dist.data.schema import LABEL
from dlrm_dist.data.sources import Column
from dlrm_dist.data.transform import Transform
from dlrm_dist.data.vocabulary import id_type
from dlrm_dist.errors import UserError

RawRow = Mapping[str, Any]
"""A value by column; a column that is absent, or None, is missing."""


def table_of(rows: Sequence[RawRow], transform: Transform) -> pa.Table:
    """Rows as a table of their raw columns.

    Raises:
        UserError: a row has a column of another name, or values of types that do not go together.
    """
    names = raw_columns(transform)
    known = {*names, LABEL, *_unused(transform)}
    for number, row in enumerate(rows, 1):
        other = next((name for name in row if name not in known), None)
        if other is not None:
            raise UserError(f"row {number}: no column is called {other!r}; allowed: {', '.join(names)}; rename it")
    columns = {}
    for name in names:
        try:
            columns[name] = pa.array([row.get(name) for row in rows])
        except (pa.ArrowException, OverflowError) as error:
            raise _bad(name, error) from None
    return pa.table(columns)


def raw_columns(transform: Transform) -> tuple[str, ...]:
    """The names of the raw columns that features are made of."""
    if transform.schema:
        raw = (each.column or name for name, each in transform.schema.categories.items())
        return tuple(dict.fromkeys([*transform.schema.dense, *raw]))
    if transform.options.format in CRITEO:
        return (*kaggle.DENSE, *kaggle.CATEGORIES)
    return (*transform.info.dense, *(each.name for each in transform.columns))


def _unused(transform: Transform) -> tuple[str, ...]:
    """Raw columns that a row may have beside its features."""
    schema = transform.schema
    return (schema.label, *([schema.weight] if schema.weight else [])) if schema else ()


def parse(rows: pa.Table, transform: Transform) -> pa.Table:
    """A table of raw columns, whatever else it has, as columns that `Transform.prepared` takes.

    Criteo's: integers or nothing; categories as hexadecimal text, as integers, or nothing. Those of a schema file: as
    in its files. Slot text's and npy's: numbers, and ids or values as integers.

    Raises:
        UserError: a column is missing, or has values that are not possible.
    """
    missing = [name for name in raw_columns(transform) if name not in rows.column_names]
    if missing:
        raise UserError(f"the rows lack column {', '.join(missing[:3])}; allowed: all of the raw columns; add them")
    if transform.schema:
        return _by_schema(rows, transform)
    if transform.options.format in CRITEO:
        return _criteo(rows, transform)
    columns = {name: _cast(name, rows[name], pa.float32(), "numbers").fill_null(0) for name in transform.info.dense}
    return pa.table(columns | {each.name: _integers(rows[each.name], each) for each in transform.columns})


def _criteo(rows: pa.Table, transform: Transform) -> pa.Table:
    numbers = [_cast(name, rows[name], pa.int64(), "integers, or nothing") for name in kaggle.DENSE]
    empty = [each.is_null().to_numpy(zero_copy_only=False) for each in numbers]
    integers = [each.fill_null(0).to_numpy() for each in numbers]
    categories = [_hexadecimal(name, rows[name]) for name in kaggle.CATEGORIES]
    options = transform.options
    form = kaggle.Kaggle(options.dense, options.bins)
    return pa.table(form.features(integers, empty, categories), names=[*kaggle.DENSE, *form.categories])


def _hexadecimal(name: str, column: pa.ChunkedArray) -> pa.Array:
    allowed = "0 to 8 digits of 0-9, a-f, A-F, integers of 32 bits, or nothing"
    values = _whole(column)
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        values = pc.if_else(pc.equal(values, ""), None, values)
        values = pc.binary_join_element_wise("0x", values.cast(pa.string()), "")
    return _cast(name, values, pa.uint32(), allowed)


def _by_schema(rows: pa.Table, transform: Transform) -> pa.Table:
    schema, dense = transform.schema, transform.options.dense
    assert schema is not None and dense != "minmax"  # see `options.check`
    lists = {schema.categories[each.name].column or each.name: each.multi_hot for each in transform.columns}
    rows = rows.select(raw_columns(transform))
    rows = pa.table({name: _typed(rows[name], lists.get(name, False)) for name in rows.column_names})
    parquet.check_types("the rows", {field.name: field.type for field in rows.schema}, schema, ())
    for name, is_list in lists.items():
        if parquet.is_list(rows.schema.field(name).type) != is_list:
            raise UserError(f"column {name} {'holds no lists' if is_list else 'holds lists'}, unlike the run's dataset")
    batch = rows.combine_chunks().to_batches()[0]
    columns, bad, allowed = parquet.features(batch, schema, transform.columns, dense)
    for name, where in bad.items():
        if where.any():
            raise UserError(f"row {int(np.argmax(where)) + 1}: column {name}: allowed: {allowed[name]}; mend the row")
    return pa.table(columns)


def _typed(column: pa.ChunkedArray, is_list: bool) -> pa.ChunkedArray:
    """A column of missing values alone, or of empty lists, with a type."""
    if pa.types.is_null(column.type) or (parquet.is_list(column.type) and pa.types.is_null(column.type.value_type)):
        return column.cast(pa.list_(pa.int64()) if is_list else pa.int64())
    return column


def _integers(column: pa.ChunkedArray, how: Column) -> pa.Array:
    """Ids as they are, or values by their bits; in slot text, where nothing is missing, id 0 stands for it."""
    if how.ids == "keep":
        return _cast(how.name, column, id_type(how.rows), "ids, or nothing").fill_null(0)
    return _cast(how.name, column, pa.uint64(), "integers from 0 on, or nothing")


def _cast(name: str, column: pa.ChunkedArray | pa.Array, type_: pa.DataType, allowed: str) -> pa.Array:
    try:
        return _whole(column).cast(type_)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise _bad(name, error, allowed) from None


def _whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _bad(name: str, error: Exception, allowed: str = "values of one type") -> UserError:
    return UserError(f"column {name}: {str(error).splitlines()[0]}; allowed: {allowed}; mend the rows")

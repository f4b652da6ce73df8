"""What a dataset's Parquet footers say, against its `dataset.json`: found out before anything is read or started."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dlrm_dist.data.schema import LABEL, LARGEST_IDS_KEY, DatasetInfo, part_metadata, stripe_group_rows
from dlrm_dist.errors import UserError


def check_split(folder: Path, info: DatasetInfo, name: str) -> None:
    """Check a split's parts: readable, with the columns, rows and row groups that are promised, ids in their tables.

    Raises:
        UserError: the first thing that does not hold.
    """
    expected = _group_rows(info, info.splits[name].rows)
    found: list[int] = []
    for part in info.splits[name].parts:
        path = folder / part
        footer = part_metadata(path)
        _check_columns(path, footer.schema.to_arrow_schema(), info)
        _check_ids(path, footer, info)
        found += [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
    if found != expected:
        layout = f"{info.lanes} lanes of {info.group_rows} rows"
        raise UserError(
            f"{folder}: split {name} has {sum(found)} rows in {len(found)} row groups where dataset.json promises "
            f"{sum(expected)} in {len(expected)} ({layout}); prepare the dataset again"
        )


def _group_rows(info: DatasetInfo, rows: int) -> list[int]:
    """Rows of each row group of a split."""
    stripes, rest = divmod(rows, info.lanes * info.group_rows)
    full = [info.group_rows] * (stripes * info.lanes)
    return full + (stripe_group_rows(rest, info.lanes) if rest else [])


def _check_columns(path: Path, schema: pa.Schema, info: DatasetInfo) -> None:
    wanted = {LABEL: pa.types.is_integer} | dict.fromkeys(info.dense, pa.types.is_float32)
    wanted |= {each.name: _is_ids_list if each.multi_hot else pa.types.is_integer for each in info.categories}
    wanted |= {info.weight: pa.types.is_float32} if info.weight else {}
    for name, is_right in wanted.items():
        if name not in schema.names or not is_right(schema.field(name).type):
            found = schema.field(name).type if name in schema.names else "missing"
            raise UserError(f"{path}: column {name} is {found}, unlike dataset.json; prepare the dataset again")


def _is_ids_list(type_: pa.DataType) -> bool:
    return pa.types.is_list(type_) and pa.types.is_integer(type_.value_type)


def _check_ids(path: Path, footer: pq.FileMetaData, info: DatasetInfo) -> None:
    largest = json.loads((footer.metadata or {}).get(LARGEST_IDS_KEY, b"{}"))
    for category in info.categories:
        if largest.get(category.name, 0) >= category.rows:
            raise UserError(
                f"{path}: column {category.name}: id {largest[category.name]} lies outside its table of "
                f"{category.rows} rows (0 to {category.rows - 1}); prepare the dataset again"
            )

"""How raw rows become a dataset: the options of `prepare`, their limits, and what the dataset records of them."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from dlrm_dist.data.files import File
from dlrm_dist.data.kaggle import Dense
from dlrm_dist.data.schema import GROUP_ROWS, LANES
from dlrm_dist.data.sources import Columns, Ids, OnBadRow
from dlrm_dist.errors import UserError

Format = Literal["kaggle", "slot", "npy", "parquet"]
_MOST = 1 << 40
"""Beyond any table, file or seed; what is larger is a mistyped number."""
LEAST_MEMORY = 10**9


@dataclass(frozen=True)
class PrepareOptions:
    """How raw rows become a dataset.

    `split` is "none" (all sources are training rows; `valid` and `test` name the others' files), "kaggle" (7 equal
    chunks in file order: 6 train, the last halved into valid and test), "day" (MLPerf's: the last file is halved into
    valid and test), "bars_x1" or "bars_x4" (drawn at random by `seed`, 7:2:1 or 8:1:1), or three fractions
    "0.8,0.1,0.1" in file order.
    `vocabulary` is a dataset, or its folder of vocabularies, whose ids the rows get instead of new ones.
    `on_bad_row`: "error", or "skip" (left out), or "null" (bad fields become missing values; rows with a bad label or
    number of columns are left out); splits are cut by lines, whatever is left out.
    `ids` "keep" is for values that are ids already, in format npy or parquet. `schema` maps the columns of format
    parquet. Format slot keeps its ids and dense values, format npy its dense values.
    `memory` is in bytes.
    """

    format: Format
    valid: tuple[str | Path, ...] = ()
    test: tuple[str | Path, ...] = ()
    split: str = "none"
    ids: Ids = "vocabulary"
    hash_rows: int = 1_000_000
    min_count: int = 2
    vocabulary: Path | None = None
    schema: Path | None = None
    dense: Dense = "log1p"
    bins: bool = False
    on_bad_row: OnBadRow = "error"
    shuffle: bool = True
    seed: int = 0
    memory: int = 2 * 10**9
    lanes: int = LANES
    group_rows: int = GROUP_ROWS


def check(options: PrepareOptions) -> None:
    """Raise a UserError if an option is impossible, or does not go with another."""
    least = {"hash_rows": 1, "min_count": 1, "seed": 0, "lanes": 1, "group_rows": 1, "memory": LEAST_MEMORY}
    for name, smallest in least.items():
        if not smallest <= getattr(options, name) < _MOST:
            raise UserError(f"{name}: {getattr(options, name)} is impossible; allowed: {smallest} to {_MOST - 1}")
    allowed = {"format": get_args(Format), "ids": get_args(Ids), "dense": get_args(Dense)}
    allowed["on_bad_row"] = get_args(OnBadRow) if options.format != "slot" else ("error", "skip")
    if options.format == "kaggle":
        allowed["ids"] = ("hash", "vocabulary")
    if options.format == "parquet":
        allowed["dense"] = ("log1p", "log3", "none")
    for name, values in allowed.items():
        if getattr(options, name) not in values:
            raise UserError(f"{name}: {getattr(options, name)!r} is unknown; allowed: {', '.join(values)}; choose one")
    if options.split != "none" and (options.valid or options.test):
        raise UserError(
            f"split: {options.split!r} cuts the sources, but files for valid or test are given too; allowed: one of "
            "the two; use split none or leave those files away"
        )
    _check_format(options)


def _check_format(options: PrepareOptions) -> None:
    if options.bins and options.format != "kaggle":
        raise UserError(
            f"bins: format {options.format} has no integers for bins; allowed: with format kaggle; leave it out"
        )
    if options.vocabulary and (options.format == "slot" or options.ids != "vocabulary"):
        raise UserError(
            "vocabulary: the ids do not come from one; allowed: with ids vocabulary, in other formats than slot; "
            "leave it out"
        )
    if (options.schema is not None) != (options.format == "parquet"):
        raise UserError("schema: maps the columns of format parquet; allowed: with that format, which needs one")


def transform_of(
    files: dict[str, list[File]], options: PrepareOptions, columns: Columns, schema: dict[str, Any] | None
) -> dict[str, Any]:
    """What `dataset.json` says about how raw values became columns."""
    result: dict[str, Any] = {"format": options.format}
    if options.format == "slot":
        result |= {"dense": "none", "ids": "slot", "shared_id_space": True, "missing_id": 0}
    else:
        result |= {"dense": "none" if options.format == "npy" else options.dense, "ids": options.ids}
        result |= _ids_transform(options, columns)
    if options.format == "kaggle":
        result["bins"] = options.bins
    if schema is not None:
        result["schema"] = schema
    if options.on_bad_row != "error":
        result["on_bad_row"] = options.on_bad_row
    result |= {"split": options.split, "shuffle_seed": options.seed if options.shuffle else None}
    result["sources"] = {name: [file.name for file in group] for name, group in files.items() if group}
    result["source_bytes"] = sum(file.size for group in files.values() for file in group)
    return result


def _ids_transform(options: PrepareOptions, columns: Columns) -> dict[str, Any]:
    if options.ids == "keep":
        return {}
    if options.ids == "hash":
        return {"hash_rows": options.hash_rows, "missing_value": columns.categories[0].missing}
    if options.vocabulary:
        return {"vocabulary": os.fspath(options.vocabulary)}
    return {"min_count": options.min_count}

"""How raw rows become a dataset: the options of `prepare`, their limits, and what the dataset records of them."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from dlrm_dist.data.files import File
from dlrm_dist.data.kaggle import MISSING as CRITEO_MISSING
from dlrm_dist.data.kaggle import Dense
from dlrm_dist.data.parquet import MISSING, ParquetSchema
from dlrm_dist.data.schema import GROUP_ROWS, LANES
from dlrm_dist.data.sources import Ids, OnBadRow
from dlrm_dist.data.splits import RANDOM
from dlrm_dist.errors import UserError

Format = Literal["kaggle", "terabyte", "slot", "npy", "parquet"]
CRITEO: tuple[Format, ...] = ("kaggle", "terabyte")
"""Two logs of Criteo's, in one and the same format."""
_POSSIBLE: dict[tuple[str, str], tuple[str, ...]] = {
    ("kaggle", "ids"): ("hash", "vocabulary", "raw"),
    ("terabyte", "ids"): ("hash", "vocabulary", "raw"),
    ("slot", "on_bad_row"): ("error", "skip"),
    ("parquet", "dense"): ("log1p", "log3", "none"),
}
"""Values of options in a format that does not have all of them."""
_MOST = 1 << 40
"""Beyond any table, file or seed; what is larger is a mistyped number."""
LEAST_MEMORY = 10**9


@dataclass(frozen=True)
class PrepareOptions:
    """How raw rows become a dataset.

    `split` is "none" (all sources are training rows; `valid` and `test` name the others' files), "kaggle" (7 equal
    chunks in file order: 6 train, the last halved into test and then valid), "day" (MLPerf's: the last file is halved
    into valid and then test), "bars_x1" or "bars_x4" (drawn at random by `seed`, 7:2:1 or 8:1:1), or three fractions
    "0.8,0.1,0.1" in file order.
    `vocabulary` is a dataset, or its folder of vocabularies, whose ids the rows get instead of new ones.
    `on_bad_row`: "error", or "skip" (left out), or "null" (bad fields become missing values; rows with a bad label or
    number of columns are left out); splits are cut by lines, whatever is left out.
    `ids` "raw" leaves a column's values as they are (modulo 2^63 - 1), for tables with managed collisions; `raw` names
    the columns where only some are to be so.
    `ids` "keep" is for values that are ids already, in format npy or parquet. `schema` maps the columns of format
    parquet. Format slot keeps its ids and dense values, format npy its dense values.
    `hash_rows` is a number for all columns, or one for each; format parquet has a column's own in its schema.
    `max_rows` bounds a vocabulary's table: the most frequent values get ids of their own, the rest share one.
    `memory` is in bytes. `named` are the options that the user chose: one that would have no effect is an error.
    """

    format: Format
    valid: tuple[str | Path, ...] = ()
    test: tuple[str | Path, ...] = ()
    split: str = "none"
    ids: Ids = "vocabulary"
    raw: tuple[str, ...] = ()
    hash_rows: int | tuple[int, ...] = 1_000_000
    min_count: int = 2
    max_rows: int | None = None
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
    named: tuple[str, ...] = ()


def check(options: PrepareOptions) -> None:
    """Raise a UserError if an option is impossible, or does not go with another."""
    least = {"hash_rows": 1, "min_count": 1, "max_rows": 2, "seed": 0, "lanes": 1, "group_rows": 1}
    least |= {"memory": LEAST_MEMORY}
    for name, smallest in least.items():
        given = getattr(options, name)
        for value in given if isinstance(given, tuple) else (given,):
            if value is not None and not smallest <= value < _MOST:
                raise UserError(f"{name}: {value} is impossible; allowed: {smallest} to {_MOST - 1}")
    known = {"format": Format, "ids": Ids, "dense": Dense, "on_bad_row": OnBadRow}
    for name, values in known.items():
        value, every = getattr(options, name), get_args(values)
        allowed = _POSSIBLE.get((options.format, name), every)
        if value not in allowed:
            what = f"not possible in format {options.format}" if value in every else "unknown"
            raise UserError(f"{name}: {value!r} is {what}; allowed: {', '.join(allowed)}; choose one")
    if options.split != "none" and (options.valid or options.test):
        raise UserError(
            f"split: {options.split!r} cuts the sources, but files for valid or test are given too; allowed: one of "
            "the two; use split none or leave those files away"
        )
    _check_format(options)


def _check_format(options: PrepareOptions) -> None:
    if options.bins and options.format not in CRITEO:
        raise UserError(
            f"bins: format {options.format} has no integers for bins; allowed: with format {' or '.join(CRITEO)}; "
            "leave it out"
        )
    if options.raw and options.format not in (*CRITEO, "npy"):
        way = 'ids = "raw" in the schema file' if options.format == "parquet" else "nothing: its ids are hashed already"
        raise UserError(f"raw: format {options.format} does not take it; allowed: {way}; leave it out")
    if options.format == "parquet" and isinstance(options.hash_rows, tuple):
        raise UserError(
            "hash_rows: format parquet takes one number; allowed: others in the schema file; give rows there"
        )
    if (options.schema is not None) != (options.format == "parquet"):
        raise UserError("schema: maps the columns of format parquet; allowed: with that format, which needs one")


def check_effects(options: PrepareOptions, schema: ParquetSchema | None) -> None:
    """Raise a UserError if an option that the user named would be without effect."""
    idle = without_effect(options, schema)
    named = (*options.named, "vocabulary") if options.vocabulary else options.named
    name = next((name for name in named if name in idle), None)
    if name:
        reason, allowed = idle[name]
        raise UserError(f"{name}: would have no effect: {reason}; allowed: {allowed}; leave it out")


def without_effect(options: PrepareOptions, schema: ParquetSchema | None) -> dict[str, tuple[str, str]]:
    """The options that do not matter to the dataset beside the others: why, and where they would."""
    columns = _ids(options, schema)
    hashed = [rows for ids, rows, _ in columns if ids == "hash"]
    counted = [least for ids, _, least in columns if ids == "vocabulary" and not options.vocabulary]
    own = schema is not None and all(each.ids for each in schema.categories.values())
    judged = {
        "dense": (
            options.format not in ("slot", "npy") or options.dense == "none",
            f"format {options.format} keeps its dense values",
            "in other formats, or none",
        ),
        "raw": (options.ids != "raw", "all columns have raw ids", "beside ids hash, vocabulary or keep"),
        "ids": (
            options.format != "slot" and not own,
            f"format {options.format} {'has them for each column' if own else 'keeps its ids'}",
            "where columns have none of their own",
        ),
        "hash_rows": (None in hashed, "no column takes it for a hash", "with ids hash"),
        "min_count": (None in counted, "no column takes it for a new vocabulary", "with ids vocabulary, made anew"),
        "max_rows": (bool(counted), "no column has a new vocabulary", "with ids vocabulary, made anew"),
        "vocabulary": (
            any(ids == "vocabulary" for ids, _, _ in columns),
            "no column's ids come from one",
            "with ids vocabulary",
        ),
        "seed": (options.shuffle or options.split in RANDOM, "nothing is drawn", "with a shuffle or a random split"),
    }
    return {name: (reason, allowed) for name, (matters, reason, allowed) in judged.items() if not matters}


def _ids(options: PrepareOptions, schema: ParquetSchema | None) -> list[tuple[Ids, int | None, int | None]]:
    """How columns get their ids, and the rows and the least count that are not from the options."""
    if schema is not None:
        return [(each.ids or options.ids, each.rows, each.min_count) for each in schema.categories.values()]
    of_all: Ids = "keep" if options.format == "slot" else options.ids
    return [(of_all, None, None), *[("raw", None, None) for _ in options.raw]]


def transform_of(files: dict[str, list[File]], options: PrepareOptions, schema: ParquetSchema | None) -> dict[str, Any]:
    """What `dataset.json` says about how raw values became columns: every option that matters to them."""
    result: dict[str, Any] = {"format": options.format}
    if options.format == "slot":
        result |= {"dense": "none", "ids": "slot", "shared_id_space": True, "missing_id": 0}
    else:
        result |= {"dense": "none" if options.format == "npy" else options.dense, "ids": options.ids}
        result |= _ids_transform(options, schema)
    if options.format in CRITEO:
        result["bins"] = options.bins
    if schema is not None:
        result["schema"] = schema.model_dump(exclude_none=True)
    if options.on_bad_row != "error":
        result["on_bad_row"] = options.on_bad_row
    result |= {"split": options.split, "shuffle_seed": options.seed if options.shuffle else None}
    if options.split in RANDOM:
        result["split_seed"] = options.seed
    result["sources"] = {name: [file.name for file in group] for name, group in files.items() if group}
    result["source_bytes"] = sum(file.size for group in files.values() for file in group)
    return result


def _ids_transform(options: PrepareOptions, schema: ParquetSchema | None) -> dict[str, Any]:
    idle, result = without_effect(options, schema), dict[str, Any]()
    rows = options.hash_rows
    recorded = {"hash_rows": list(rows) if isinstance(rows, tuple) else rows, "min_count": options.min_count}
    result |= {name: value for name, value in recorded.items() if name not in idle}
    result |= {"max_rows": options.max_rows} if options.max_rows else {}
    result |= {"raw": list(options.raw)} if options.raw else {}
    if any(ids in ("hash", "raw") for ids, _, _ in _ids(options, schema)):
        result["missing_value"] = CRITEO_MISSING if options.format in CRITEO else MISSING
    if options.vocabulary:
        result["vocabulary"] = os.fspath(options.vocabulary)
    return result

"""An example request: raw rows that an export's vocabularies know, with the probabilities that it gives them."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dlrm_dist.data import kaggle
from dlrm_dist.data.options import CRITEO
from dlrm_dist.data.transform import Transform
from dlrm_dist.data.vocabulary import file_of
from dlrm_dist.errors import UserError
from dlrm_dist.serving.bundle import EXAMPLE
from dlrm_dist.serving.scorer import Scorer

_VALUES = 2
"""Rows with values: the most frequent of each column, then the next ones. Behind them is one without any value."""


def write_example(scorer: Scorer, folder: Path) -> None:
    """Write the request, and what it gives; without rows where the run's dataset was made without raw ones."""
    try:
        rows = _rows(scorer.transform, folder)
    except UserError:
        rows = []
    found = [round(float(each), 7) for each in scorer.predict(rows)] if rows else []
    (folder / EXAMPLE).write_text(json.dumps({"rows": rows, "probabilities": found}, indent=1) + "\n")


def _rows(transform: Transform, folder: Path) -> list[dict[str, Any]]:
    """Rows with values, and one with none but kept ids, which cannot be missing.

    Categories of other formats than Criteo's, whose values may be known by a hash alone, have none.
    """
    names = kaggle.DENSE if transform.options.format in CRITEO else transform.info.dense
    rows: list[dict[str, Any]] = [dict.fromkeys(names, number) for number in range(1, _VALUES + 1)]
    if transform.options.format in CRITEO:
        for name in kaggle.CATEGORIES:
            for row, value in zip(rows, _frequent(folder, name), strict=True):
                row[name] = None if value is None else f"{value:08x}"
    return [row | _kept(transform, number) for number, row in enumerate([*rows, {}])]


def _kept(transform: Transform, number: int) -> dict[str, Any]:
    """Ids that a schema file keeps as they are."""
    found: dict[str, Any] = {}
    if transform.schema:
        for column in (each for each in transform.columns if each.ids == "keep"):
            name, id_ = transform.schema.categories[column.name].column or column.name, number % column.rows
            found[name] = [id_] if column.multi_hot else id_
    return found


def _frequent(folder: Path, name: str) -> list[int | None]:
    """The most frequent values of a category; made-up ones where it has no vocabulary, or too few."""
    path, made_up = file_of(folder, name), list(range(1, _VALUES + 1))
    if not path.is_file():
        return [*made_up]
    batch: pa.RecordBatch | None = next(pq.ParquetFile(path).iter_batches(_VALUES, columns=["value"]), None)
    found = [] if batch is None else batch["value"].to_pylist()
    return [*found, *made_up[len(found) :]]

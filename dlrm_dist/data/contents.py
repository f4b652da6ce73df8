"""What is in a prepared dataset: rows, clicks, and the law of each column. One column is read at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from dlrm_dist.data.schema import Category, DatasetInfo, read_info
from dlrm_dist.errors import UserError

_READ_ROWS = 1 << 20
TOPS = (1, 10, 100)


def contents(folder: Path) -> dict[str, Any]:
    """Figures of a dataset, over all its splits; memory for 8 bytes an id of the largest column.

    Returns:
        `splits`: rows, clicks and label rate of each. `dense`: by column its least, mean and largest value and the
        share of zeros (a missing integer is one of them). `categories`: by column its `ids` (rows of its table), the
        `seen` ones, the share of rows with id 0 (`rare`; only with a vocabulary) and with a missing value (`missing`;
        None where it shares its id with other values), and the shares of the most frequent 1, 10, 100 ids
        (`top`); for a multi-hot column the `ids_a_row`: least, mean, most.

    Raises:
        UserError: there is no dataset, or a part of it cannot be read.
    """
    info = read_info(folder)
    splits = {
        name: {"rows": split.rows, "clicks": split.clicks, "label_rate": split.clicks / max(1, split.rows)}
        for name, split in info.splits.items()
    }
    columns = tqdm([*info.dense, *info.categories], desc="inspect", unit=" columns", disable=None)
    dense, categories = {}, {}
    for column in columns:
        if isinstance(column, Category):
            categories[column.name] = _category(folder, info, column)
        else:
            dense[column] = _dense(_values(folder, info, column))
    return {"splits": splits, "dense": dense, "categories": categories, "transform": info.transform}


def _values(folder: Path, info: DatasetInfo, column: str) -> Iterator[npt.NDArray[Any]]:
    """A column's values in pieces, all splits one behind another; those of lists one by one."""
    return (_flat(batch.column(0)) for batch in _batches(folder, info, column))


def _batches(folder: Path, info: DatasetInfo, column: str) -> Iterator[pa.RecordBatch]:
    for path in (folder / part for split in info.splits.values() for part in split.parts):
        try:
            with pq.ParquetFile(path) as file:
                yield from file.iter_batches(_READ_ROWS, columns=[column])
        except (OSError, ValueError, KeyError, IndexError) as error:  # pyarrow's own errors derive from these
            reason = str(error).splitlines()[0]
            raise UserError(f"{path}: column {column} cannot be read: {reason}; prepare the dataset again") from None


def _flat(column: pa.Array) -> npt.NDArray[Any]:
    return (column.flatten() if pa.types.is_list(column.type) else column).to_numpy()


def _dense(pieces: Iterator[npt.NDArray[np.float32]]) -> dict[str, float]:
    least, most, total, zeros, rows = np.inf, -np.inf, 0.0, 0, 0
    for piece in filter(len, pieces):
        least, most = min(least, float(piece.min())), max(most, float(piece.max()))
        total += float(piece.sum(dtype=np.float64))
        zeros += int(np.count_nonzero(piece == 0))
        rows += len(piece)
    return {"min": least, "mean": total / rows, "max": most, "zeros": zeros / rows}


def _category(folder: Path, info: DatasetInfo, category: Category) -> dict[str, Any]:
    counts = np.zeros(category.rows, np.int64)
    for piece in _values(folder, info, category.name):
        ids, found = np.unique(piece, return_counts=True)
        if len(ids) and not 0 <= ids[0] <= ids[-1] < category.rows:
            raise UserError(
                f"{folder}: column {category.name}: an id lies outside its table of {category.rows} rows; prepare the "
                "dataset again"
            )
        counts[ids] += found
    rows = int(counts.sum())
    largest = np.sort(np.partition(counts, max(0, len(counts) - TOPS[-1]))[-TOPS[-1] :])[::-1]
    missing = _missing_id(folder, category.name)
    figures: dict[str, Any] = {
        "ids": category.rows,
        "seen": int(np.count_nonzero(counts)),
        "rare": counts[0] / max(1, rows) if _vocabulary(folder, category.name).exists() else None,
        "missing": None if missing is None else counts[missing] / max(1, rows),
        "top": {str(top): int(largest[:top].sum()) / max(1, rows) for top in TOPS},
    }
    return figures | ({"ids_a_row": _sizes(folder, info, category.name)} if category.multi_hot else {})


def _sizes(folder: Path, info: DatasetInfo, column: str) -> dict[str, float]:
    """Ids a row of a multi-hot column: least, mean, most."""
    least, most, total, rows = np.inf, 0, 0, 0
    for batch in _batches(folder, info, column):
        lengths = pc.list_value_length(batch.column(0)).to_numpy()
        if len(lengths):
            least, most = min(least, int(lengths.min())), max(most, int(lengths.max()))
            total, rows = total + int(lengths.sum()), rows + len(lengths)
    return {"min": least, "mean": total / max(1, rows), "max": most}


def _vocabulary(folder: Path, column: str) -> Path:
    return folder / "vocabulary" / f"{column}.parquet"


def _missing_id(folder: Path, column: str) -> int | None:
    """The id that stands for a missing value and for nothing else, where there is one."""
    if not _vocabulary(folder, column).exists():  # slot text writes 0 for it, which may be an id too
        return None
    values = pq.read_table(_vocabulary(folder, column), columns=["value"])["value"]
    position = np.flatnonzero(values.is_null().to_numpy())
    return int(position[0]) + 1 if len(position) else None

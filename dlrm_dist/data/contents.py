"""What is in a prepared dataset: rows, clicks, and the law of each column. One column is read at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dlrm_dist import progress
from dlrm_dist.data import missing
from dlrm_dist.data.id_counts import count_ids
from dlrm_dist.data.schema import Category, DatasetInfo, read_info
from dlrm_dist.data.vocabulary import file_of
from dlrm_dist.errors import UserError

_READ_ROWS = 1 << 20
TOPS = (1, 10, 100)


def contents(folder: Path) -> dict[str, Any]:
    """Figures of a dataset, over all its splits, in bounded memory: see `id_counts`.

    Returns:
        `rows`: of all splits. `splits`: rows, clicks and label rate of each. `num_bad_rows`: left out or mended;
        `bad_rows`: what was wrong with them, by reason. `dense`: by column its least, mean and largest value, the share
        of zeros, and the most that can be missing (`missing_at_most`; None: unknown). `weight`: least, mean, largest of
        the rows' weights; None without. `categories`: by column its `ids` (rows of its table), the `seen` ones, the
        share of rows with id 0 (`rare`; only with a vocabulary) and with a missing value (`missing`; None where it
        shares its id with other values, and then `missing_at_most` is the share of that id), and the shares of the most
        frequent 1, 10, 100 ids (`top`); for a multi-hot column the `ids_a_row`: least, mean, most.

    Raises:
        UserError: there is no dataset, or a part of it cannot be read.
    """
    info = read_info(folder)
    splits = {
        name: {"rows": split.rows, "clicks": split.clicks, "label_rate": split.clicks / max(1, split.rows)}
        for name, split in info.splits.items()
    }
    columns: Iterator[str | Category] = progress.each([*info.dense, *info.categories], "inspect", "columns")
    dense, categories = {}, {}
    for column in columns:
        if isinstance(column, Category):
            categories[column.name] = _category(folder, info, column)
        else:
            dense[column] = _dense(_values(folder, info, column), missing.dense_value(info))
    return {
        "rows": sum(split.rows for split in info.splits.values()),
        "splits": splits,
        "num_bad_rows": info.num_bad_rows,
        "bad_rows": info.bad_rows,
        "dense": dense,
        "weight": _weight(folder, info),
        "categories": categories,
        "transform": info.transform,
    }


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


def _dense(pieces: Iterator[npt.NDArray[np.float32]], of_missing: np.float32 | None) -> dict[str, float | None]:
    least, most, total, zeros, gaps, rows = np.inf, -np.inf, 0.0, 0, 0, 0
    for piece in filter(len, pieces):
        least, most = min(least, float(piece.min())), max(most, float(piece.max()))
        total += float(piece.sum(dtype=np.float64))
        zeros += int(np.count_nonzero(piece == 0))
        gaps += int(np.count_nonzero(piece == of_missing)) if of_missing is not None else 0
        rows += len(piece)
    at_most = None if of_missing is None else gaps / rows
    return {"min": least, "mean": total / rows, "max": most, "zeros": zeros / rows, "missing_at_most": at_most}


def _weight(folder: Path, info: DatasetInfo) -> dict[str, Any] | None:
    if not info.weight:
        return None
    figures = _dense(_values(folder, info, info.weight), None)
    return {"column": info.weight} | {key: figures[key] for key in ("min", "mean", "max")}


def _category(folder: Path, info: DatasetInfo, category: Category) -> dict[str, Any]:
    def pieces() -> Iterator[npt.NDArray[Any]]:
        for piece in filter(len, _values(folder, info, category.name)):
            if piece.min() < 0 or piece.max() >= category.rows:
                raise UserError(
                    f"{folder}: column {category.name}: an id lies outside its table of {category.rows} rows; prepare "
                    "the dataset again"
                )
            yield piece

    gap = missing.category_value(folder, info, category)
    counts = count_ids(pieces, category.rows, TOPS[-1], {0} if gap is None or gap.id is None else {0, gap.id})
    rows = max(1, counts.total)
    most = None if gap is None else 0.0 if gap.id is None else counts.of[gap.id] / rows
    figures: dict[str, Any] = {
        "ids": None if category.unbounded else category.rows,
        "seen": counts.seen,
        "rare": counts.of[0] / rows if file_of(folder, category.name).exists() else None,
        "missing": most if gap and gap.is_alone else None,
        "missing_at_most": most,
        "top": {str(top): sum(counts.top[:top]) / rows for top in TOPS},
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

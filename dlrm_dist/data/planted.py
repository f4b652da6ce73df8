"""The default dataset: planted clicks, made where there is none yet, once, whichever rank comes first."""

import math
import tempfile
from pathlib import Path

from filelock import FileLock

from dlrm_dist.data.kaggle import CATEGORIES, DENSE
from dlrm_dist.data.options import PrepareOptions
from dlrm_dist.data.prepare import prepare
from dlrm_dist.data.schema import GROUP_ROWS, LANES, Category, DatasetInfo, Split
from dlrm_dist.data.synthetic import DEFAULT_ROWS, write_clicks
from dlrm_dist.errors import UserError
from dlrm_dist.sections import DataSection

_MIN_COUNT = 5
"""A value seen less often in training says more about its rows' chance labels than about the next ones."""


def is_wanted(section: DataSection) -> bool:
    """Whether planted clicks must be made: nothing is at `data.path`, and it is the default or rows are asked for."""
    default = section.path == DataSection().path
    return not section.path.exists() and (default or section.planted_rows is not None)


def ensure(section: DataSection) -> None:
    """Make the planted dataset at `data.path` if it is wanted; other processes wait for the one that makes it.

    Train, valid and test (80, 10 and 10 %) share the planted effects; each has rows, and a best reachable AUC, of its
    own.

    Raises:
        UserError: the place cannot be written.
    """
    if not is_wanted(section):
        return
    path = section.path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / f".{path.name}.lock"):
            if is_wanted(section):
                _make(path, section.planted_rows or DEFAULT_ROWS)
    except OSError as error:
        raise UserError(f"data.path {path}: cannot be made: {error.strerror}; choose another --data.path") from None


def to_come(section: DataSection) -> DatasetInfo:
    """What is known beforehand of the dataset that `ensure` makes: all but how many ids a category has."""
    counts = _rows_of(section.planted_rows or DEFAULT_ROWS)
    return DatasetInfo(
        dense=DENSE,
        categories=tuple(Category(name=name, rows=1) for name in CATEGORIES),
        lanes=LANES,
        group_rows=GROUP_ROWS,
        splits={split: Split(rows=rows, clicks=0, parts=()) for split, rows in counts.items()},
        transform={"ids": "vocabulary"},
    )


def _rows_of(rows: int) -> dict[str, int]:
    held_out = max(1, rows // 10)
    return {"train": max(1, rows - 2 * held_out), "valid": held_out, "test": held_out}


def _make(path: Path, rows: int) -> None:
    print(f"no dataset at {path}: making {rows:,} rows of planted clicks there, once", flush=True)
    counts = _rows_of(rows)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-raw-", dir=path.parent) as folder:
        files = {split: Path(folder, f"{split}.tsv") for split in counts}
        best = {
            split: write_clicks(file, counts[split], seed=seed).best_auc
            for seed, (split, file) in enumerate(files.items())
        }
        options = PrepareOptions("kaggle", valid=(files["valid"],), test=(files["test"],), min_count=_MIN_COUNT)
        known = {split: auc for split, auc in best.items() if not math.isnan(auc)}  # so few rows may be of one class
        prepare([files["train"]], path, options, best_auc=known)

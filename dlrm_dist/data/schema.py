"""What a prepared dataset is: Parquet parts in stripes of row groups, and `dataset.json` beside them.

Layout of one split (`train`, `valid`, `test`), all parts in name order taken as one sequence of row groups:

- row group `g` belongs to lane `g % lanes` and stripe `g // lanes`;
- every row group of every stripe but the last has `group_rows` rows;
- the last stripe's rows are spread evenly: its lane `l` has `r // lanes + (l < r % lanes)` of its `r` rows.

So lanes are equally long up to one row, and a rank that owns whole lanes decodes only its own share. The order in which
training visits the rows is defined in `dlrm_dist.data.order`.
"""

import difflib
import json
from pathlib import Path
from typing import Any, Literal, Self

import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dlrm_dist.errors import UserError, first_problem

FORMAT_VERSION = 1
LANES = 384
"""384 = 2^7 * 3: a rank's share of the decoding is at most ceil(384/W)/(384/W) <= 1.17 times fair for W <= 64 ranks."""
GROUP_ROWS = 2048
"""Measured, 40 columns, lz4, one core: 177 rows a group decode at 1.2M rows/s, 1,024 at 2.4M, 2,048 at 3.7M, 16,384 at
6.2M. A rank holds its share of one stripe (lanes * group_rows rows, 126 MB at 2,048) and prefetches the next."""
RAW_IDS = (1 << 63) - 1
"""Ids of a column that no table bounds; the largest int64 is none, as TorchRec marks empty rows by it."""
LABEL = "label"
METADATA_KEY = b"dlrm_dist"
LARGEST_IDS_KEY = b"dlrm_dist.largest_ids"
"""In a part's metadata: its largest id of each category, as JSON."""


Input = tuple[str, int, int]
"""A file that a dataset was made from: its name, its bytes, when it was changed (ns)."""


class Category(BaseModel):
    """One categorical column: its name and its number of ids (valid ids are 0 to `rows` - 1).

    A `multi_hot` column holds a list of ids a row, of any length, 0 too; another holds one id a row.
    A column of raw ids has `RAW_IDS` of them: more than any table.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    rows: int = Field(gt=0)
    multi_hot: bool = False

    @property
    def unbounded(self) -> bool:
        """Whether it has raw ids, which only a table with managed collisions can take."""
        return self.rows == RAW_IDS


class Split(BaseModel):
    """One split: rows, clicks (rows with label 1), and its Parquet parts relative to the dataset's folder, in order."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    rows: int = Field(ge=0)
    clicks: int = Field(ge=0)
    parts: tuple[str, ...]


class DatasetInfo(BaseModel):
    """The content of `dataset.json`.

    `transform` records how raw values became columns (format, dense transform, id mapping, sources); `best_auc` is the
    best reachable AUC by split where the clicks were planted, else empty. `bad_rows` counts what was wrong with
    rows that were left out or mended, and `num_bad_rows` these rows. `weight` names the float32 column of the rows'
    weights, where there is one. `inputs` only serve to tell whether the same command would make the same dataset: they
    need not exist any more.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    version: Literal[1] = 1
    dense: tuple[str, ...]
    categories: tuple[Category, ...] = Field(min_length=1)
    lanes: int = Field(gt=0)
    group_rows: int = Field(gt=0)
    splits: dict[str, Split]
    transform: dict[str, Any]
    best_auc: dict[str, float] = {}
    bad_rows: dict[str, int] = {}
    num_bad_rows: int = 0
    weight: str | None = None
    inputs: tuple[Input, ...] = ()

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [LABEL, *self.dense, *(category.name for category in self.categories)]
        names += [self.weight] if self.weight else []
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"column {twice[0]} is named twice")
        return self

    def write(self, folder: Path) -> None:
        """Write `dataset.json` into `folder`."""
        (folder / "dataset.json").write_text(self.model_dump_json(indent=1) + "\n")


def read_info(folder: str | Path) -> DatasetInfo:
    """Read and check a prepared dataset's `dataset.json`.

    Raises:
        UserError: there is none, it cannot be read, or it is of another version; or a part of it is missing.
    """
    folder = Path(folder)
    info = read_description(folder)
    missing = [part for split in info.splits.values() for part in split.parts if not (folder / part).is_file()]
    if missing:
        raise UserError(f"{folder}: {len(missing)} Parquet parts are missing, first {missing[0]}; prepare it again")
    return info


def read_description(folder: Path) -> DatasetInfo:
    """Read `dataset.json` where its rows need not be: a run keeps the one of the dataset it was trained on.

    Raises:
        UserError: there is none, it cannot be read, or it is of another version.
    """
    path = folder / "dataset.json"
    try:
        return DatasetInfo.model_validate(json.loads(path.read_text()))
    except FileNotFoundError:
        raise UserError(f"{folder}: no prepared dataset here (no dataset.json); make one: dlrm-dist prepare") from None
    except ValidationError as error:
        reason = first_problem(error)
        raise UserError(
            f"{path}: cannot be read as a dataset of version {FORMAT_VERSION}: {reason}; prepare the dataset again"
        ) from None
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path}: cannot be read as a dataset of version {FORMAT_VERSION}: {reason}; prepare the dataset again"
        ) from None


def check_category(key: str, name: str | None, info: DatasetInfo) -> None:
    """Check that what a key of the config names, if anything, is a category.

    Raises:
        UserError: it is none.
    """
    names = [category.name for category in info.categories]
    if name is not None and name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"such as {names[0]}"
        raise UserError(f"{key} is {name!r}; allowed: one of the dataset's {len(names)} categories; {hint}")


def stripe_group_rows(rows_in_stripe: int, lanes: int) -> list[int]:
    """Rows of each of a stripe's `lanes` row groups (a full stripe has equal ones, the last is spread evenly)."""
    each, extra = divmod(rows_in_stripe, lanes)
    return [each + (lane < extra) for lane in range(lanes)]


def part_metadata(path: Path) -> pq.FileMetaData:
    """A part's Parquet footer.

    Raises:
        UserError: the file is no readable Parquet.
    """
    try:
        return pq.read_metadata(path)
    except (OSError, ValueError) as error:  # pyarrow's own errors derive from these two
        raise UserError(
            f"{path}: not a readable Parquet file: {str(error).splitlines()[0]}; prepare it again"
        ) from None

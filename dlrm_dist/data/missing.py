"""What stands for a missing value in a prepared column, as far as its transform tells."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from dlrm_dist.data.options import CRITEO
from dlrm_dist.data.parquet import MISSING, MISSING_RAW
from dlrm_dist.data.schema import Category, DatasetInfo
from dlrm_dist.data.vocabulary import file_of


class Gap(NamedTuple):
    """The id of a missing value; None: no row has one.

    Where it `is_alone`, no other value has that id.
    """

    id: int | None
    is_alone: bool


def dense_value(info: DatasetInfo) -> np.float32 | None:
    """What a missing number became, as a number of that value did too; None: unknown, it was made elsewhere."""
    if info.transform.get("format") not in (*CRITEO, "parquet", "synth"):
        return None
    return np.float32(np.log(3.0)) if info.transform["dense"] == "log3" else np.float32(0)


def category_value(folder: Path, info: DatasetInfo, category: Category) -> Gap | None:
    """What a missing value of a category became; None: unknown, or it is a list, which is shorter without it."""
    transform, form = info.transform, info.transform.get("format")
    if category.multi_hot or form not in (*CRITEO, "parquet", "synth", "slot"):  # npy: a number that was one before
        return None
    if "missing_id" in transform:  # slot text's may be an id too
        return Gap(transform["missing_id"], form == "synth")
    if file_of(folder, category.name).exists():
        id_ = _missing_id(file_of(folder, category.name))
        return Gap(0, False) if id_ is None else Gap(id_, True)
    own = transform.get("schema", {}).get("categories", {}).get(category.name, {})
    if own.get("ids", transform.get("ids")) == "keep":  # there it is a bad value
        return Gap(None, True)
    if category.unbounded and form == "parquet":
        return Gap(MISSING_RAW, False)
    value = transform.get("missing_value", MISSING)
    return Gap(value % category.rows, value < category.rows)


def _missing_id(path: Path) -> int | None:
    """The id of a vocabulary's missing value, where it was seen often enough to have its own."""
    before = 1
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=["value"]):
            if batch["value"].null_count:
                return before + int(np.argmin(batch["value"].is_valid().to_numpy(zero_copy_only=False)))
            before += len(batch)
    return None

"""What an export is on disk: a folder that is complete or absent, with a SHA-256 of each of its files."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from dlrm_dist import __version__
from dlrm_dist.checkpoint.folder import checksum
from dlrm_dist.checkpoint.saved_run import Columns, SavedRun
from dlrm_dist.data.schema import Category, DatasetInfo
from dlrm_dist.data.transform import KEYS
from dlrm_dist.errors import UserError, first_problem
from dlrm_dist.packages import installed

FORMAT = 1
"""Of `export.json`. Whoever changes what it means counts it up, and reads the older ones too."""
MANIFEST, EXAMPLE, CARD = "export.json", "example.json", "README.md"
_PACKAGES = ("torch", "torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu")


class Record(BaseModel):
    """A frozen record of known fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Check(Record):
    """An export against the trained model, both over the same rows.

    Attributes:
        rows: how many.
        difference: the largest of a probability.
        tolerance: allowed for it.
        auc: of the export; None where the rows are of one class.
        auc_change: from the trained model's, in absolute value.
        auc_tolerance: allowed for it.
    """

    rows: int
    difference: float
    tolerance: float
    auc: float | None
    auc_change: float | None
    auc_tolerance: float

    @property
    def holds(self) -> bool:
        """Whether both are within what is allowed; a number that is none is not."""
        return self.difference <= self.tolerance and (self.auc_change is None or self.auc_change <= self.auc_tolerance)


class Signature(Record):
    """What an export takes, and how it comes from raw rows; nothing else of the run's configuration is needed.

    Attributes:
        dense: names of the dense columns.
        categories: their columns, with the ids they may have.
        table_rows: see `Columns`.
        expand_multi_hot: see `Columns.expand`.
        transform: what `Transform` reads.
        split: of a dataset that is scored, where none is chosen.
    """

    dense: tuple[str, ...]
    categories: tuple[Category, ...]
    table_rows: tuple[int, ...]
    expand_multi_hot: tuple[int, ...] | None
    transform: dict[str, Any]
    split: str

    @classmethod
    def of(cls, saved: SavedRun) -> Self:
        """A run's."""
        columns, info = saved.columns, saved.info
        return cls(
            dense=info.dense,
            categories=info.categories,
            table_rows=columns.table_rows,
            expand_multi_hot=columns.expand,
            transform={key: value for key, value in info.transform.items() if key in KEYS},
            split=saved.config.eval.split,
        )

    def columns(self, folder: Path) -> Columns:
        """As a run has them."""
        info = DatasetInfo(
            dense=self.dense, categories=self.categories, lanes=1, group_rows=1, splits={}, transform=self.transform
        )
        return Columns(folder, info, self.table_rows, self.expand_multi_hot)


class Bundle(Record):
    """The content of `export.json`.

    Attributes:
        format: of the folder, see `FORMAT`.
        program: what `model.pt2` is: `pt2`, or `aoti`, compiled for a processor.
        embeddings: precision of the tables.
        signature: see there.
        run: the trained run's name.
        step: its completed steps.
        scores: of the run's own validation at that step, if it was scored then.
        check: see there.
        versions: of the packages that made it.
        sha256: of each file but this one.
        digest: a SHA-256 of all else here.
    """

    format: int = FORMAT
    program: Literal["pt2", "aoti"]
    embeddings: Literal["fp32", "fp16", "int8", "int4"]
    signature: Signature
    run: str
    step: int
    scores: dict[str, float]
    check: Check
    versions: dict[str, str]
    sha256: dict[str, str] = {}
    digest: str = ""


def is_export(folder: Path) -> bool:
    """Whether a folder claims to be an export."""
    return (folder / MANIFEST).is_file()


def read_bundle(folder: Path) -> Bundle:
    """An export's record, once every file is known to be as it was written.

    Raises:
        UserError: there is no export, or it is damaged, or of a newer format.
    """
    if not is_export(folder):
        raise UserError(f"{folder}: no export here (no {MANIFEST}); make one: dlrm-dist export RUN {folder}")
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}; export the run again") from None
    _check_format(path, values)
    if values.get("digest") != _digest(values):
        raise UserError(f"{path}: is damaged; export the run again, or copy the folder again, whole")
    try:
        bundle = Bundle.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{path}: {first_problem(error)}; export the run again") from None
    _check_files(folder, bundle)
    return bundle


def _check_format(path: Path, values: Any) -> None:
    found = values.get("format") if isinstance(values, dict) else None
    if type(found) is not int:
        raise UserError(f"{path}: says no format, so it is no export of this program; export the run again")
    if found > FORMAT:
        raise UserError(
            f"{path}: is of format {found}, this program reads up to {FORMAT}; use the version of dlrm-dist that wrote "
            "it, or export the run again with this one"
        )


def _check_files(folder: Path, bundle: Bundle) -> None:
    for name, expected in bundle.sha256.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{folder / MANIFEST}: points to files outside the folder; it is refused")
        if not path.is_file() or checksum(path) != expected:
            what = "is damaged" if path.is_file() else "is missing"
            raise UserError(f"{folder}: file {name} {what}; export the run again, or copy the folder again, whole")


def _digest(values: dict[str, Any]) -> str:
    rest = {key: value for key, value in values.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def write_bundle(folder: Path, bundle: Bundle) -> Bundle:
    """Write an export's record, the last of its files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sha256 = {str(path.relative_to(folder)): checksum(path) for path in files}
    bundle = bundle.model_copy(update={"sha256": sha256})
    bundle = bundle.model_copy(update={"digest": _digest(bundle.model_dump(mode="json"))})
    (folder / MANIFEST).write_text(bundle.model_dump_json(indent=1) + "\n")
    return bundle


def versions() -> dict[str, str]:
    """Of this package and those that decide what a program can be loaded by."""
    return {"dlrm-dist": __version__, **installed(_PACKAGES)}

"""What an export is on disk: a folder that is complete or absent, with a SHA-256 of each of its files."""

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from dlrm_dist import __version__
from dlrm_dist import config as config_module
from dlrm_dist.checkpoint.folder import CONFIG, checksum
from dlrm_dist.checkpoint.saved_run import SavedRun
from dlrm_dist.data.schema import read_description
from dlrm_dist.errors import UserError, first_problem

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


class Bundle(Record):
    """The content of `export.json`.

    Attributes:
        version: of this format.
        program: what `model.pt2` is: `pt2`, or `aoti`, compiled for a processor.
        embeddings: precision of the tables.
        run: the trained run's name.
        step: its completed steps.
        scores: of the run's own validation at that step, if it was scored then.
        check: see there.
        versions: of the packages that made it.
        sha256: of each file but this one.
    """

    version: Literal[1] = 1
    program: Literal["pt2", "aoti"]
    embeddings: Literal["fp32", "fp16", "int8", "int4"]
    run: str
    step: int
    scores: dict[str, float]
    check: Check
    versions: dict[str, str]
    sha256: dict[str, str]


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
    try:
        bundle = Bundle.model_validate(json.loads((folder / MANIFEST).read_text()))
    except ValidationError as error:
        raise UserError(f"{folder / MANIFEST}: {first_problem(error)}; export the run again") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / MANIFEST}: cannot be read: {error}; export the run again") from None
    for name, expected in bundle.sha256.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{folder / MANIFEST}: points to files outside the folder; it is refused")
        if not path.is_file() or checksum(path) != expected:
            what = "is damaged" if path.is_file() else "is missing"
            raise UserError(f"{folder}: file {name} {what}; export the run again, or copy the folder again, whole")
    return bundle


def write_bundle(folder: Path, bundle: Bundle) -> Bundle:
    """Write an export's record, the last of its files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sha256 = {str(path.relative_to(folder)): checksum(path) for path in files}
    bundle = bundle.model_copy(update={"sha256": sha256})
    (folder / MANIFEST).write_text(bundle.model_dump_json(indent=1) + "\n")
    return bundle


def saved_of(folder: Path) -> SavedRun:
    """The run that an export is of, as far as an export keeps it: config, columns, vocabularies.

    Raises:
        UserError: its config or its columns cannot be read.
    """
    config = config_module.load(["--config", str(folder / CONFIG)])
    return SavedRun(folder, folder, config, read_description(folder))


def versions() -> dict[str, str]:
    """Of this package and those that decide what a program can be loaded by."""
    found = {"dlrm-dist": __version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # one of fbgemm's two
            continue
    return found

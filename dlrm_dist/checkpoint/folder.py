"""What a checkpoint is on disk: a folder `step_<n>` that is complete or absent.

torch.distributed.checkpoint (DCP) writes its files; beside them lie `checkpoint.json` (position, scores, what the run
must share with the one that continues it, a SHA-256 of each file), and the run's `config.toml` and `plan.json`. All of
it is written under a temporary name and renamed when every rank is done. Every tensor has a name of the model's and its
whole size, so any number of ranks and any plan can load what any other saved.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from dlrm_dist import progress
from dlrm_dist.errors import UserError
from dlrm_dist.monitor import Standing
from dlrm_dist.plain import without_nan

FORMAT_VERSION = 3
FACTS = "checkpoint.json"
CHECKSUM = ".sha256"
CONFIG, PLAN = "config.toml", "plan.json"


class Progress(BaseModel):
    """What the loop has added up, so that a resumed run reports as an uninterrupted one.

    Scores of the rows trained on are not in it (32,768 bins): behind a resume, reports say of how many rows they are.

    Attributes:
        loss_sum: of the steps since the last report, over all ranks' rows.
        reported_step: the step of the last report.
        train_seconds: spent in training, evaluation not counted.
        standing: what validation has shown, for drops of the learning rates and the end of the run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss_sum: float = 0.0
    reported_step: int = 0
    train_seconds: float = 0.0
    standing: Standing = Standing()


class Facts(BaseModel):
    """The content of `checkpoint.json`.

    Attributes:
        format: version of the format; `_UPGRADES` says how an older one becomes the present one.
        step: completed steps.
        epoch: the epoch that the next step belongs to.
        rows: global rows trained on.
        progress: sums of the loop.
        scores: of the validation at this step, if it was scored then; those alone that are numbers.
        stays: whether it is kept however many follow.
        same: what a run that continues must have in common.
        announced: what may differ, but is told.
        sha256: of each file but this one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT_VERSION
    step: int
    epoch: int
    rows: int
    progress: Progress
    scores: dict[str, float]
    stays: bool = False
    same: dict[str, Any]
    announced: dict[str, Any]
    sha256: dict[str, str]

    @field_validator("scores", mode="before")
    @classmethod
    def _numbers(cls, scores: dict[str, float | None]) -> dict[str, float]:
        """Without what rows of one class leave untold: JSON has no NaN, and null is no number."""
        return {name: score for name, score in without_nan(scores).items() if score is not None}


def _from_1(values: dict[str, Any]) -> dict[str, Any]:
    """Format 1 had neither epoch, rows, progress nor scores."""
    progress = {"reported_step": values["step"]}
    return {**values, "format": 2, "epoch": 0, "rows": 0, "progress": progress, "scores": {}}


def _from_2(values: dict[str, Any]) -> dict[str, Any]:
    """Format 2 knew neither plateaus nor early stopping."""
    return {**values, "format": 3}


_UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1, 2: _from_2}
"""How the facts of an older format become those of the next; who changes the format adds an entry and a test. Formats
that are newer than the program are refused."""


def read_facts(path: Path) -> Facts:
    """The facts of a checkpoint, brought to the present format.

    Raises:
        UserError: the file is missing, damaged, or of a newer format.
    """
    try:
        values = json.loads((path / FACTS).read_text())
        while values["format"] < FORMAT_VERSION:
            values = _UPGRADES[values["format"]](values)
        if values["format"] > FORMAT_VERSION:
            raise UserError(
                f"{path}: is of format {values['format']}, this program reads up to {FORMAT_VERSION}; use the version "
                "of dlrm-dist that wrote it"
            )
        return Facts.model_validate(values)
    except FileNotFoundError:
        raise UserError(f"{path}: {FACTS} is missing: not a complete checkpoint") from None
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        raise UserError(f"{path}: {FACTS} is damaged; use another checkpoint of the run") from None


def write_complete(temporary: Path, final: Path, facts: Facts) -> None:
    """Write the facts, with the checksums that the ranks left, and give the checkpoint its name."""
    checksums = {}
    for path in sorted(temporary.iterdir()):
        if path.suffix == CHECKSUM:
            checksums[path.stem] = path.read_text()
            path.unlink()
    for path in sorted(temporary.iterdir()):
        if path.name not in checksums:
            checksums[path.name] = checksum(path)
    text = facts.model_copy(update={"sha256": checksums}).model_dump_json(indent=1)
    (temporary / FACTS).write_text(text + "\n")
    if final.is_dir():  # damaged, else it would not be written anew
        shutil.rmtree(final)
    temporary.replace(final)


def temporary_name(final: Path) -> Path:
    """Where a checkpoint lies while it is written."""
    return final.with_name(f".{final.name}.tmp")


def clear_leftovers(folder: Path) -> None:
    """Remove what a killed run had half written."""
    for leftover in folder.glob(".*.tmp"):
        shutil.rmtree(leftover)


def complete_ones(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first; their files may be damaged."""
    return sorted(path for path in folder.glob("step_*") if path.is_dir())


def step_of(path: Path) -> int:
    """The completed steps of the checkpoint at `path`, by its name."""
    return int(path.name.removeprefix("step_"))


def best_of(folder: Path) -> tuple[Path, float] | None:
    """The checkpoint with the highest AUC, and that AUC; the older one of two equals."""
    found: tuple[Path, float] | None = None
    for path in complete_ones(folder):
        try:
            auc = read_facts(path).scores.get("auc")
        except UserError:
            continue
        if auc is not None and (found is None or auc > found[1]):
            found = path, auc
    return found


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, the best one, and those that are to stay."""
    best = best_of(folder)
    for path in complete_ones(folder)[:-keep]:
        if (best is None or path != best[0]) and not _stays(path):
            shutil.rmtree(path)


def _stays(path: Path) -> bool:
    try:
        return read_facts(path).stays
    except UserError:
        return False


def damage_of(path: Path, part: int = 0, parts: int = 1) -> str | None:
    """What is wrong with a checkpoint's files, if anything is.

    Args:
        path: the checkpoint.
        part: only every `parts`-th file is read, from this one on: so ranks share the work.
        parts: how many share it.
    """
    try:
        facts = read_facts(path)
    except UserError as error:
        return str(error).removeprefix(f"{path}: ").partition(";")[0]
    for name in facts.sha256:
        if not (path / name).is_file():
            return f"file {name} is missing"
    mine = list(facts.sha256.items())[part::parts]
    for name, expected in progress.each(mine, "check", "files", speaks=part == 0):
        if checksum(path / name) != expected:
            return f"file {name} is damaged"
    return None


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Checkpoints of a run: complete or absent, made for the model and not for the cluster.

A checkpoint is a folder `step_<n>` that torch.distributed.checkpoint (DCP) writes, with `checkpoint.json` beside its
files: position, what the run must share with the one that continues it, and a SHA-256 of each file. It is written under
a temporary name and renamed when every rank is done. Every tensor has a name of the model's and its whole size, so any
number of ranks and any plan can load what any other saved.

DCP's `.metadata` is a pickle: load only checkpoints of your own runs. The checksums tell damage, not malice.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.checkpoint import CheckpointException, FileSystemReader, FileSystemWriter

from dlrm_dist.config import CheckpointSection
from dlrm_dist.errors import RunFailedError, UserError
from dlrm_dist.runtime import Session
from dlrm_dist.shard import ShardedTask

FORMAT_VERSION = 1
_FACTS = "checkpoint.json"
_SECOND_NAMES = {"sum": "moment1", "momentum1": "moment1", "exp_avg": "moment1", "exp_avg_sq": "moment2"}
"""One name for what the fused optimizers and torch's call differently: a table may change from one to the other."""

State = dict[str, Tensor | ShardedTensor]


@dataclass(frozen=True)
class Continued:
    """What a run goes on from."""

    step: int
    path: Path
    notes: list[str]


class Checkpoints:
    """The checkpoints of one run, in a folder of their own.

    Args:
        folder: where they lie; made when the first one is saved.
        here: this rank.
        section: how often one is due, and how many of the newest are kept.
        same: what a run that continues must have in common: key and value, such as the global batch and the seed.
        announced: what may differ, but is told: such as the world size and the plan's digest.
    """

    def __init__(
        self, folder: Path, here: Session, section: CheckpointSection, same: dict[str, Any], announced: dict[str, Any]
    ) -> None:
        self._folder, self._here, self._section = folder, here, section
        self._same, self._announced = same, announced

    def is_due(self, step: int) -> bool:
        """Whether one is to be saved after this step, wherever the run ends."""
        return self._section.every > 0 and step % self._section.every == 0

    def save(self, sharded: ShardedTask, step: int) -> None:
        """Save the state after `step` completed steps. Collective.

        Raises:
            RunFailedError: it cannot be written; the earlier checkpoints are as they were.
        """
        final = self._folder / f"step_{step:09d}"
        temporary = final.with_name(f".{final.name}.tmp")
        if self._here.from_main(lambda: self._begin(final, temporary)):
            return
        with _told_as_failure(final):
            dcp.save(state_of(sharded), storage_writer=FileSystemWriter(temporary))
        self._here.from_main(lambda: self._finish(temporary, final, step))

    def load_newest(self, sharded: ShardedTask) -> Continued | None:
        """Load the newest complete checkpoint into `sharded`; None if there is none. Collective.

        Raises:
            UserError: it is from a run that this one cannot continue.
        """
        found: Continued | None = self._here.from_main(self._newest)
        if found is None:
            return None
        load(sharded, found.path, found.step)
        return found

    def _begin(self, final: Path, temporary: Path) -> bool:
        """Clear what a killed run left; says whether the checkpoint is there already."""
        with _told_as_failure(final):
            for leftover in self._folder.glob(".*.tmp"):
                shutil.rmtree(leftover)
            if final.is_dir() and damage_of(final):
                shutil.rmtree(final)
            if final.is_dir():
                return True
            temporary.mkdir(parents=True)
        return False

    def _finish(self, temporary: Path, final: Path, step: int) -> None:
        with _told_as_failure(final):
            self._complete(temporary, final, step)

    def _complete(self, temporary: Path, final: Path, step: int) -> None:
        facts = {
            "format": FORMAT_VERSION,
            "step": step,
            "same": self._same,
            "announced": self._announced,
            "sha256": {path.name: _checksum(path) for path in sorted(temporary.iterdir())},
        }
        (temporary / _FACTS).write_text(json.dumps(facts, indent=1) + "\n")
        temporary.replace(final)
        for old in complete_names(self._folder)[: -self._section.keep]:
            shutil.rmtree(old)

    def _newest(self) -> Continued | None:
        """The newest checkpoint that is whole; what is damaged is named and passed over."""
        notes = []
        for path in reversed(complete_names(self._folder)):
            damage = damage_of(path)
            if damage:
                notes.append(f"{path}: {damage}; using the one before it")
                continue
            facts = json.loads((path / _FACTS).read_text())
            self._check(path, facts)
            for key, value in self._announced.items():
                if facts["announced"].get(key) != value:
                    notes.append(f"{path}: was saved with {key} {facts['announced'].get(key)}, now it is {value}")
            return Continued(facts["step"], path, notes)
        if notes:
            raise UserError(
                f"{notes[0].rpartition(';')[0]}, and there is no other complete checkpoint; start a new run"
            )
        return None

    def _check(self, path: Path, facts: dict[str, Any]) -> None:
        for key, value in self._same.items():
            if facts["same"].get(key) != value:
                raise UserError(
                    f"{path}: was saved with {key} {facts['same'].get(key)!r}, this run has {value!r}; continue with "
                    "the same, or start a new run (another --run.name)"
                )


def state_of(sharded: ShardedTask) -> State:
    """All weights and optimizer state by plan-independent names; loading into these tensors changes the task."""
    state: State = {f"model.{key}": value for key, value in sharded.model.state_dict().items()}
    for parameter, values in sharded.optimizer.state_dict()["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor | ShardedTensor):
                short = name.rpartition(".")[2]
                state[f"optim.{parameter}.{_SECOND_NAMES.get(short, short)}"] = _one_axis(value)
    return state


def load(sharded: ShardedTask, path: Path, step: int) -> None:
    """Load a checkpoint's state into a task of any plan. Collective.

    Raises:
        UserError: a tensor is missing or has another size.
    """
    state = state_of(sharded)
    reader = FileSystemReader(path)
    saved = reader.read_metadata().state_dict_metadata
    counters = {key for key in state if key.endswith(".step")}
    for key, value in state.items():
        size, here = getattr(saved.get(key), "size", None), _size(value)
        if size is None and key not in counters:
            raise UserError(f"{path}: has no {key}; it is of another model or optimizer, and cannot be continued")
        if size is not None and list(size) != here:
            raise UserError(
                f"{path}: {key} has size {list(size)}, here {here}; tables cut by columns keep row-wise "
                "Adagrad's moments otherwise than whole ones: use the same sharding type for them"
            )
    dcp.load({key: value for key, value in state.items() if key in saved}, storage_reader=reader)
    for key in counters - set(saved):  # a table that was fused, whose optimizer counts no steps
        counter = state[key]
        assert isinstance(counter, Tensor)
        counter.fill_(step)


def complete_names(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    return sorted(path for path in folder.glob("step_*") if path.is_dir())


def damage_of(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, if anything is."""
    try:
        facts = json.loads((path / _FACTS).read_text())
        checksums = facts["sha256"]
        if facts["format"] != FORMAT_VERSION:
            return f"is of format {facts['format']}, this program reads {FORMAT_VERSION}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{_FACTS} is missing or damaged"
    for name, checksum in checksums.items():
        if not (path / name).is_file():
            return f"file {name} is missing"
        if _checksum(path / name) != checksum:
            return f"file {name} is damaged"
    return None


def _one_axis(value: Tensor | ShardedTensor) -> Tensor | ShardedTensor:
    """A moment a row as [rows]: the replicated row-wise Adagrad has [rows, 1], the fused one [rows]."""
    if isinstance(value, Tensor) and not isinstance(value, ShardedTensor) and value.dim() == 2 and value.shape[1] == 1:
        return value.view(-1)
    return value


def _size(value: Tensor | ShardedTensor) -> list[int]:
    """Of the whole tensor."""
    return list(value.metadata().size if isinstance(value, ShardedTensor) else value.size())


@contextmanager
def _told_as_failure(path: Path) -> Iterator[None]:
    """What goes wrong inside ends the run with one line; what is half written is cleared by the next save."""
    try:
        yield
    except (CheckpointException, OSError) as error:
        raise RunFailedError(
            f"{path}: the checkpoint cannot be written: {_reason(error)}; the earlier ones are intact"
        ) from None


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(error: BaseException) -> str:
    """The first line that says something."""
    if isinstance(error, CheckpointException):
        error = next((each[0] for each in error.failures.values()), error)
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__

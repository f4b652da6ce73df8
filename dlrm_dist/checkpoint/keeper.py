"""Saving and loading the checkpoints of one run."""

import math
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import CheckpointException

from dlrm_dist.checkpoint import folder as folders
from dlrm_dist.checkpoint.folder import Facts, Progress
from dlrm_dist.checkpoint.managed import notes_of, restore_notes
from dlrm_dist.checkpoint.state import load, random_state, restore_random_state, state_of
from dlrm_dist.checkpoint.storage import Writer
from dlrm_dist.config import Config
from dlrm_dist.errors import RunFailedError, UserError
from dlrm_dist.planning.plan_file import PlanFile
from dlrm_dist.runtime import Session
from dlrm_dist.sections import CheckpointSection
from dlrm_dist.shard import ShardedTask


@dataclass(frozen=True)
class Position:
    """Where a run is: completed steps, epoch of the next one, global rows trained on, whether an epoch ends here."""

    step: int
    epoch: int
    rows: int
    ends_epoch: bool = False


@dataclass(frozen=True)
class Continued:
    """What a run goes on from."""

    step: int
    path: Path
    progress: Progress
    notes: list[str]


@dataclass(frozen=True)
class Origin:
    """What of a run is written beside its weights.

    Attributes:
        config: the effective configuration.
        plan: where the tables lay.
        same: what a run that continues must have in common: key and value, such as the global batch and the seed.
        announced: what may differ, but is told: such as the world size and the plan's digest.
    """

    config: Config
    plan: PlanFile
    same: dict[str, Any]
    announced: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, in a folder of their own. At most one is being written at a time.

    Args:
        folder: where they lie; made when the first one is saved.
        here: this rank.
        section: how often one is due, how many are kept, and whether training waits for them.
        origin: what is written beside the weights.
    """

    def __init__(self, folder: Path, here: Session, section: CheckpointSection, origin: Origin) -> None:
        self._folder, self._here, self._section, self._origin = folder, here, section, origin
        self._writing: Future[Any] | None = None
        # A group of its own: the background's collectives must not mix with those of training.
        self._group = dist.new_group(backend="gloo", timeout=here.timeout) if section.asynchronous else None
        self._saved_at = time.monotonic()
        self._best: float | None = None

    def is_due(self, at: Position) -> bool:
        """Whether one is to be saved here, by the number of steps or the end of an epoch."""
        return (self._section.every > 0 and at.step % self._section.every == 0) or self._stays(at)

    def _stays(self, at: Position) -> bool:
        return self._section.each_epoch and at.ends_epoch

    def is_due_by_clock(self) -> bool:
        """Whether one is due by this rank's clock."""
        minutes = self._section.every_minutes
        return minutes > 0 and time.monotonic() - self._saved_at >= 60 * minutes

    def is_best(self, scores: dict[str, float]) -> bool:
        """Whether these scores of the present step are the best by AUC; a state with the best scores is kept.

        An AUC that is not a number (rows of one class) never is.
        """
        return scores.get("auc", math.nan) > (-math.inf if self._best is None else self._best)

    def has_failed(self) -> bool:
        """Whether what was being written has failed."""
        return self._writing is not None and self._writing.done() and self._writing.exception() is not None

    def save(
        self, sharded: ShardedTask, at: Position, progress: Progress, scores: dict[str, float], wait: bool
    ) -> None:
        """Save the state at `at`. Collective.

        Args:
            sharded: the task.
            at: completed steps, epoch, rows.
            progress: the loop's sums.
            scores: of this state, if it was scored.
            wait: return only when it is complete.

        Raises:
            RunFailedError: it, or the one before it, cannot be written; the others are as they were.
        """
        self.wait()
        self._saved_at = time.monotonic()
        self._best = scores["auc"] if self.is_best(scores) else self._best
        final = self._folder / f"step_{at.step:09d}"
        if self._here.from_main(lambda: self._begin(final)):
            return
        facts = Facts(
            step=at.step,
            epoch=at.epoch,
            rows=at.rows,
            progress=progress,
            scores=scores,
            stays=self._stays(at),
            same=self._origin.same,
            announced=self._origin.announced,
            sha256={},
        )
        writer = Writer(folders.temporary_name(final), lambda: self._complete(final, facts))
        state = {**state_of(sharded), **random_state(self._here), **notes_of(sharded, self._here)}
        with _told_as_failure(final):
            if self._group is None or wait:
                dcp.save(state, storage_writer=writer)
            else:  # the writer stages: a copy in host memory, made before this returns
                writing = dcp.async_save(state, storage_writer=writer, process_group=self._group)
                assert isinstance(writing, Future)
                self._writing = writing

    def wait(self) -> None:
        """Wait for the one that is being written.

        Raises:
            RunFailedError: it cannot be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            with _told_as_failure(self._folder):
                writing.result()

    def load_newest(self, sharded: ShardedTask) -> Continued | None:
        """Load the newest complete checkpoint into `sharded`; None if there is none. Collective.

        What is damaged is named and passed over.

        Raises:
            UserError: it is from a run that this one cannot continue; all are damaged.
        """
        notes: list[str] = []
        for path in reversed(self._here.from_main(lambda: folders.complete_ones(self._folder))):
            damage = shared_damage(path, self._here)
            if damage:
                notes.append(f"{path}: {damage}; using the one before it")
                continue
            facts = self._here.from_main(partial(folders.read_facts, path))
            self._check(path, facts)
            load(sharded, path, facts.step)
            if facts.announced["ranks"] == self._here.world_size:
                restore_random_state(self._here, path)
                restore_notes(sharded, self._here, path)
            best = self._here.from_main(lambda: folders.best_of(self._folder))
            self._best = best[1] if best else None
            return Continued(facts.step, path, facts.progress, notes + self._differences(path, facts))
        if notes:
            raise UserError(
                f"{notes[0].rpartition(';')[0]}, and there is no other complete checkpoint; start a new run"
            )
        return None

    def _begin(self, final: Path) -> bool:
        """Clear what a killed run left; says whether the checkpoint is there already."""
        with _told_as_failure(final):
            folders.clear_leftovers(self._folder)
            if final.is_dir() and not folders.damage_of(final):
                return True
            temporary = folders.temporary_name(final)
            temporary.mkdir(parents=True)
            self._origin.config.write(temporary / folders.CONFIG)
            self._origin.plan.write(temporary / folders.PLAN)
        return False

    def _complete(self, final: Path, facts: Facts) -> None:
        folders.write_complete(folders.temporary_name(final), final, facts)
        folders.prune(self._folder, self._section.keep)

    def _differences(self, path: Path, facts: Facts) -> list[str]:
        return [
            f"{path}: was saved with {key} {facts.announced[key]}, now it is {value}"
            for key, value in self._origin.announced.items()
            if facts.announced.get(key, value) != value
        ]

    def _check(self, path: Path, facts: Facts) -> None:
        for key, value in self._origin.same.items():
            if facts.same.get(key) != value:
                raise UserError(
                    f"{path}: was saved with {key} {facts.same.get(key)!r}, this run has {value!r}; continue with "
                    "the same, or start a new run (another --run.name)"
                )


def shared_damage(path: Path, here: Session) -> str | None:
    """What is wrong with a checkpoint's files, if anything is; the ranks share the reading. Collective."""
    found: list[str | None] = [None] * here.world_size
    dist.all_gather_object(found, folders.damage_of(path, here.global_rank, here.world_size))
    return next((each for each in found if each), None)


@contextmanager
def _told_as_failure(path: Path) -> Iterator[None]:
    """What goes wrong inside ends the run with one line; what is half written is cleared by the next save."""
    try:
        yield
    except (CheckpointException, OSError, UserError) as error:
        raise RunFailedError(
            f"{path}: the checkpoint cannot be written: {_reason(error)}; the earlier ones are intact"
        ) from None


def _reason(error: BaseException) -> str:
    """The first line that says something."""
    if isinstance(error, CheckpointException):
        error = next((each[0] for each in error.failures.values()), error)
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__

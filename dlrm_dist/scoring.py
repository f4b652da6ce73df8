"""Scores of a trained run's checkpoints on a dataset."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dlrm_dist import progress
from dlrm_dist.checkpoint.folder import read_facts, step_of
from dlrm_dist.checkpoint.saved_run import SavedRun
from dlrm_dist.data.loader import SplitReader
from dlrm_dist.data.schema import DatasetInfo
from dlrm_dist.errors import RunFailedError
from dlrm_dist.evaluate import evaluate
from dlrm_dist.metrics import ClickMetrics
from dlrm_dist.runtime import Session, session
from dlrm_dist.trained import load_trained


@dataclass(frozen=True)
class Score:
    """A checkpoint and its figures."""

    checkpoint: Path
    metrics: ClickMetrics

    @property
    def step(self) -> int:
        """Completed steps."""
        return step_of(self.checkpoint)

    @property
    def epoch(self) -> int | None:
        """Completed epochs, if it was saved for an epoch's end."""
        facts = read_facts(self.checkpoint)
        return facts.epoch if facts.stays else None


def score(
    saved: SavedRun, data: Path, info: DatasetInfo, split: str, checkpoints: Sequence[Path]
) -> tuple[list[Score], bool]:
    """Score checkpoints of a run on a split of a dataset with its columns. Collective: joins the process group.

    Returns:
        The scores, and whether this rank is the one to tell them.

    Raises:
        UserError: a checkpoint is damaged; the tables do not fit.
        RunFailedError: scores are not finite.
    """
    with session(saved.config.runtime) as here:
        pin, expand = here.device.type == "cuda", saved.config.data.expand_multi_hot
        reader = SplitReader(data, info, split, here.global_rank, here.world_size, pin, expand)
        return list(_scores(saved, reader, checkpoints, here)), here.is_main


def _scores(saved: SavedRun, reader: SplitReader, checkpoints: Sequence[Path], here: Session) -> Iterator[Score]:
    config = saved.config
    trained = load_trained(replace(saved, checkpoint=checkpoints[0]), here)
    with progress.bar("evaluate", "rows", reader.rows * len(checkpoints), here.is_main) as shown:
        for path in checkpoints:
            if path != checkpoints[0]:
                trained.load(path, here)
            model, size = trained.sharded.model, config.eval.batch_size
            found = evaluate(model, reader, size, here, config.metrics, saved.path, shown.update)
            if not math.isfinite(found.log_loss):  # on every rank alike
                raise RunFailedError(
                    f"{path}: the {reader.split} log loss is {found.log_loss}: the model gives scores that are not "
                    "finite; use an earlier checkpoint"
                )
            yield Score(path, found)

"""The training loop: TorchRec's pipeline fed step by step, saved and scored at intervals."""

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from dlrm_dist.checkpoint.folder import Progress
from dlrm_dist.checkpoint.keeper import Checkpoints, Continued
from dlrm_dist.data.loader import SplitReader
from dlrm_dist.epochs import Epochs
from dlrm_dist.errors import RunFailedError
from dlrm_dist.interruption import InterruptedRunError, Interruption, interruption
from dlrm_dist.learning_rate import factor_at
from dlrm_dist.listeners import Line, Listener
from dlrm_dist.meter import Meter, TimedBatches, peak_memory
from dlrm_dist.metrics import ClickMetrics
from dlrm_dist.pace import Pace
from dlrm_dist.pipeline import pipeline_of
from dlrm_dist.pulse import Pulse
from dlrm_dist.runtime import Session
from dlrm_dist.sections import EvalSection, ScheduleSection, TrainSection
from dlrm_dist.shard import ShardedTask
from dlrm_dist.step_split import StepSplit, verdict
from dlrm_dist.waiting import Waiting


class Loop:
    """Trains a sharded task through its epochs, and scores it."""

    def __init__(
        self,
        here: Session,
        sharded: ShardedTask,
        epochs: Epochs,
        train: TrainSection,
        schedule: ScheduleSection,
        evaluation: EvalSection,
        checkpoints: Checkpoints,
        split: StepSplit,
        listener: Listener,
        scorer: Callable[[nn.Module, SplitReader], ClickMetrics],
    ) -> None:
        self._here, self._sharded, self._epochs = here, sharded, epochs
        self._train, self._schedule, self._eval, self._checkpoints = train, schedule, evaluation, checkpoints
        self._split, self._listener, self._scorer = split, listener, scorer
        self._pipeline = pipeline_of(sharded, here.device)

    def run(self, train: SplitReader, valid: SplitReader, continued: Continued | None = None) -> dict[str, Any]:
        """Train to the end and score; returns the figures of the last score and of the training. Collective.

        Args:
            train: the rank's training rows.
            valid: the rank's rows to score.
            continued: the checkpoint that was loaded, if one was.

        Raises:
            InterruptedRunError: a rank was asked to stop; the state is saved.
            RunFailedError: the loss is not finite; a checkpoint cannot be written.
        """
        done, progress = (continued.step, continued.progress) if continued else (0, Progress())
        self._meter, self._standing = Meter(self._here, self._epochs, done, progress), progress.standing
        waiting = Waiting()
        self._pace, self._pulse = Pace(self._here, waiting), Pulse(self._here, waiting)
        self._listener.begins(done, self._epochs.total_steps)
        measured = waiting.measured(self._sharded.model)
        with interruption() as asked, self._split.recording(), measured, self._pulse.beating():
            return self._run_steps(train, valid, done, asked)

    def _run_steps(self, train: SplitReader, valid: SplitReader, done: int, asked: Interruption) -> dict[str, Any]:
        batches = TimedBatches(self._epochs.batches(train, done))
        step, scores = done, None
        while not self._is_last(step):
            step += 1
            self._pulse.step = step
            with self._split.step(step), self._pace.step():
                self._sharded.scale_learning_rates(self._factor(step))
                self._meter.add(self._pipeline.progress(batches), step)
            ends = self._epochs.position(step).ends_epoch or step == self._epochs.total_steps
            is_due = ends or step % self._train.log_every == 0
            if is_due:
                self._report(step, batches)
            scores = self._score(step, valid) if self._is_scored(step) else None
            if self._is_last(step) and not is_due:
                self._report(step, batches)
            self._checkpoint(step, scores, asked)
        self._checkpoints.wait()
        if scores is None:  # the run had ended before
            scores = self._score(step, valid)
        best = {"best_step": self._standing.best_step}
        return {**scores.as_dict(), "split": valid.split, **self._meter.result(step), **best}

    def _factor(self, step: int) -> float:
        """What the learning rates are multiplied by in a step, which counts from 1."""
        by_clock = factor_at(self._schedule, step - 1, self._epochs.total_steps)
        return by_clock * self._standing.factor(self._schedule)

    def _is_last(self, step: int) -> bool:
        """Whether the run ends behind `step`: all are done, or validation has not improved for long enough."""
        return step >= self._epochs.total_steps or self._standing.is_over(self._schedule)

    def _checkpoint(self, step: int, scores: ClickMetrics | None, asked: Interruption) -> None:
        """Save when it is time to, when the scores are the best, at the end, and when a rank was asked to stop.

        Collective.
        """
        is_last = self._is_last(step)
        saved, at = self._checkpoints, self._epochs.position(step)
        asked_to_stop, by_clock, failed = self._here.agree(
            asked.is_requested, self._here.is_main and saved.is_due_by_clock(), saved.has_failed()
        )
        stop = asked_to_stop and not is_last
        if failed:
            saved.wait()
        values = scores.as_dict() if scores else {}
        if stop or is_last or by_clock or saved.is_due(at) or saved.is_best(values):
            with self._meter.watch.paused():
                self._meter.check_losses()
                progress = self._meter.progress(self._standing)
                saved.save(self._sharded, at, progress, values, wait=stop or is_last)
        if stop:
            message = f"asked to stop: saved after step {step}; continue with --train.resume auto"
            raise InterruptedRunError(message, asked.is_requested)

    def _is_scored(self, step: int) -> bool:
        ends = step == self._epochs.total_steps or step % self._epochs.steps_per_epoch == 0
        return ends or (self._eval.every > 0 and step % self._eval.every == 0)

    def _score(self, step: int, valid: SplitReader) -> ClickMetrics:
        """Evaluate without the pipeline, whose batches in flight stay where they are. Collective."""
        line: Line = {"step": step, "split": valid.split, "samples": self._epochs.rows_after(step)}
        self._listener.scoring(line)
        with self._meter.watch.paused():
            model = self._pipeline.detach()
            scores = self._scorer(model, valid)
            self._pipeline.attach(model)
        if not math.isfinite(scores.log_loss):  # on every rank alike
            raise RunFailedError(
                f"the {valid.split} log loss is {scores.log_loss} after step {step}: the run has diverged; lower "
                "train.learning_rate; earlier checkpoints are intact"
            )
        self._standing = self._standing.after(self._schedule, step, scores.auc)
        self._listener.scored({**line, **scores.as_dict(), **self._standing.told(self._schedule)})
        return scores

    def _report(self, step: int, batches: TimedBatches) -> None:
        """Loss, speed, where the time went. Collective."""
        line = self._meter.report(step, batches.seconds)
        batches.seconds = 0.0
        parts = self._split.of(line["step_ms"])
        if parts:
            line |= {"split_ms": parts, "bound_by": verdict(parts)}
        rates = self._sharded.rates_at(self._factor(step))
        self._listener.trained({**line, **self._pace.report(), **rates, **peak_memory(self._here.device)})

"""The training loop: TorchRec's pipeline fed step by step, scored at intervals, reported by global rank 0."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist

from dlrm_dist.checkpoint.folder import Progress
from dlrm_dist.checkpoint.keeper import Checkpoints, Continued, Position
from dlrm_dist.config import EvalSection, TrainSection
from dlrm_dist.data.batch import ClickBatch
from dlrm_dist.data.loader import SplitReader
from dlrm_dist.data.order import EpochOrder
from dlrm_dist.errors import RunFailedError
from dlrm_dist.evaluate import evaluate
from dlrm_dist.interruption import InterruptedRunError, Interruption, interruption
from dlrm_dist.metrics import ClickMetrics
from dlrm_dist.optim import learning_rate_factor
from dlrm_dist.pipeline import pipeline_of
from dlrm_dist.runfolder import RunFolder
from dlrm_dist.runtime import Session
from dlrm_dist.shard import ShardedTask
from dlrm_dist.step_split import StepSplit, verdict


@dataclass(frozen=True)
class Schedule:
    """Which rows each step of the whole run trains on: the orders of its epochs, and the number of steps."""

    orders: tuple[EpochOrder, ...]
    total_steps: int

    @staticmethod
    def of(section: TrainSection, reader: SplitReader, drop_last: bool) -> "Schedule":
        """The schedule of a run over the reader's split."""
        orders = tuple(
            reader.order(section.batch_size, section.seed, epoch, drop_last) for epoch in range(section.epochs)
        )
        steps = sum(order.num_steps for order in orders)
        return Schedule(orders, min(steps, section.max_steps or steps))

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch; all epochs have equally many."""
        return self.orders[0].num_steps

    def rows_after(self, step: int) -> int:
        """Global rows trained on when `step` steps are done."""
        epochs, rest = divmod(step, self.steps_per_epoch)
        rows_per_epoch = self.orders[0].step_bounds(self.steps_per_epoch - 1)[1]
        return epochs * rows_per_epoch + (self.orders[0].step_bounds(rest - 1)[1] if rest else 0)

    def position(self, step: int) -> Position:
        """Where the run is when `step` steps are done."""
        return Position(step, step // self.steps_per_epoch, self.rows_after(step))

    def batches(self, reader: SplitReader, done: int = 0) -> Iterator[ClickBatch]:
        """The rank's batches of all epochs behind `done` steps, as one stream: it is not drained between epochs."""
        epoch, first = divmod(done, self.steps_per_epoch)
        orders = enumerate(self.orders[epoch:])
        stream = (batch for number, order in orders for batch in reader.batches(order, 0 if number else first))
        return islice(stream, self.total_steps - done)


class Stopwatch:
    """Seconds spent training; evaluation is not counted."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._started = time.perf_counter() - seconds

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self._started

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count what happens inside."""
        before = self.seconds
        yield
        self._started = time.perf_counter() - before


class TimedBatches:
    """An iterator that adds up the seconds its user waits for the next batch."""

    def __init__(self, batches: Iterator[ClickBatch]) -> None:
        self._batches = batches
        self.seconds = 0.0

    def __iter__(self) -> "TimedBatches":
        return self

    def __next__(self) -> ClickBatch:
        started = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self.seconds += time.perf_counter() - started


class Loop:
    """Trains a sharded task by a schedule, and scores it."""

    def __init__(
        self,
        here: Session,
        sharded: ShardedTask,
        schedule: Schedule,
        folder: RunFolder,
        train: TrainSection,
        evaluation: EvalSection,
        checkpoints: Checkpoints,
    ) -> None:
        self._here, self._sharded, self._schedule, self._folder = here, sharded, schedule, folder
        self._train, self._eval, self._checkpoints = train, evaluation, checkpoints
        self._split = StepSplit(train.profile, train.log_every, here.device, folder.trace(here.global_rank))
        self._pipeline = pipeline_of(sharded, here.device)
        self._watch = Stopwatch()
        self._marks: list[tuple[int, float]] = []  # (step, training seconds) of each report
        self._reported_step = 0
        # Of this rank, since the last report:
        self._loss = torch.zeros((), dtype=torch.float64, device=here.device)
        self._bad_step = torch.zeros((), dtype=torch.int64, device=here.device)  # first one whose loss is not finite

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
        done = continued.step if continued else 0
        progress = continued.progress if continued else Progress()
        self._watch = Stopwatch(progress.train_seconds)
        self._loss.fill_(progress.loss_sum)  # the mean over ranks is reported: each takes the whole sum
        self._reported_step = progress.reported_step
        self._marks = [(done, self._watch.seconds)]
        with interruption() as asked, self._split.recording():
            return self._run_steps(train, valid, done, asked)

    def _run_steps(self, train: SplitReader, valid: SplitReader, done: int, asked: Interruption) -> dict[str, Any]:
        total = self._schedule.total_steps
        batches = TimedBatches(self._schedule.batches(train, done))
        scores = None
        for step in range(done + 1, total + 1):
            with self._split.step(step):
                self._sharded.scale_learning_rates(learning_rate_factor(self._train, step - 1))
                self._add_loss(self._pipeline.progress(batches)[0], step)
            if step % self._train.log_every == 0 or step == total:
                self._report(step, batches)
            scores = self._score(step, valid) if self._is_scored(step) else None
            self._checkpoint(step, scores, asked)
        self._checkpoints.wait()
        if scores is None:  # the run had ended before
            scores = self._score(total, valid)
        return self._result(scores)

    def _add_loss(self, loss: torch.Tensor, step: int) -> None:
        """Without waiting for the device."""
        self._loss += loss
        is_first_bad = ~torch.isfinite(loss) & (self._bad_step == 0)
        self._bad_step.masked_fill_(is_first_bad, step)

    def _checkpoint(self, step: int, scores: ClickMetrics | None, asked: Interruption) -> None:
        """Save when it is time to, when the scores are the best, at the end, and when a rank was asked to stop.

        Collective.
        """
        is_last = step == self._schedule.total_steps
        saved = self._checkpoints
        asked_to_stop, by_clock, failed = self._here.agree(
            asked.is_requested, self._here.is_main and saved.is_due_by_clock(), saved.has_failed()
        )
        stop = asked_to_stop and not is_last
        if failed:
            saved.wait()
        values = scores.as_dict() if scores else {}
        if stop or is_last or by_clock or saved.is_due(step) or saved.is_best(values):
            with self._watch.paused():
                self._check_losses()
                at, progress = self._schedule.position(step), self._progress()
                saved.save(self._sharded, at, progress, values, wait=stop or is_last)
        if stop:
            raise InterruptedRunError(f"asked to stop: saved after step {step}; continue with --train.resume auto")

    def _progress(self) -> Progress:
        """The loop's sums, for a checkpoint. Collective."""
        return Progress(loss_sum=self._loss_sum(), reported_step=self._reported_step, train_seconds=self._watch.seconds)

    def _loss_sum(self) -> float:
        """Of the steps since the last report, the mean over ranks; waits for the device. Collective."""
        loss = self._loss / self._here.world_size
        dist.all_reduce(loss)
        return loss.item()

    def _check_losses(self) -> None:
        """Stop where a loss was not finite, before anything of that is saved or reported. Collective.

        Raises:
            RunFailedError: with the first such step and its rank.
        """
        first = self._bad_step.new_zeros(self._here.world_size)
        first[self._here.global_rank] = self._bad_step
        dist.all_reduce(first)
        steps = first.tolist()  # waits for the device
        if any(steps):
            step = min(each for each in steps if each)
            raise RunFailedError(
                f"the training loss is not finite at step {step} on rank {steps.index(step)}: the run has diverged; "
                "lower train.learning_rate; earlier checkpoints are intact"
            )

    def _is_scored(self, step: int) -> bool:
        ends = step == self._schedule.total_steps or step % self._schedule.steps_per_epoch == 0
        return ends or (self._eval.every > 0 and step % self._eval.every == 0)

    def _score(self, step: int, valid: SplitReader) -> ClickMetrics:
        """Evaluate without the pipeline, whose batches in flight stay where they are."""
        with self._watch.paused():
            model = self._pipeline.detach()
            scores = evaluate(model, valid, self._eval.batch_size, self._here.device)
            self._pipeline.attach(model)
        if not math.isfinite(scores.log_loss):  # on every rank alike
            raise RunFailedError(
                f"the {valid.split} log loss is {scores.log_loss} after step {step}: the run has diverged; lower "
                "train.learning_rate; earlier checkpoints are intact"
            )
        self._write({"step": step, "split": valid.split, **scores.as_dict()})
        self._say(
            f"step {step}: {valid.split} auc {scores.auc:.5f} log loss {scores.log_loss:.5f} ne {scores.ne:.5f} "
            f"accuracy {scores.accuracy:.5f} ({scores.rows:.0f} rows)"
        )
        return scores

    def _report(self, step: int, batches: TimedBatches) -> None:
        """The mean loss since the last report, the speed, and the time left. Collective."""
        self._check_losses()
        mean_loss = self._loss_sum() / (step - self._reported_step)
        last_step, last_seconds = self._marks[-1]
        seconds, input_seconds = self._watch.seconds, batches.seconds
        step_ms = (seconds - last_seconds) / (step - last_step) * 1e3
        parts = self._split.of(step_ms)
        bound = f", bound by {verdict(parts)}" if parts else ""
        self._marks.append((step, seconds))
        self._reported_step, batches.seconds = step, 0.0
        self._loss.zero_()
        rows = self._schedule.rows_after(step)
        rate = (rows - self._schedule.rows_after(last_step)) / (seconds - last_seconds)
        total = self._schedule.total_steps
        left = timedelta(seconds=round((self._schedule.rows_after(total) - rows) / rate))
        self._write(
            {
                "step": step,
                "split": "train",
                "samples": rows,
                "loss": mean_loss,
                "samples_per_s": rate,
                "step_ms": step_ms,
                "split_ms": parts or {"input": input_seconds / (step - last_step) * 1e3},
                "lr": self._sharded.optimizer.param_groups[0]["lr"],
            }
        )
        self._say(f"step {step}/{total} loss {mean_loss:.5f} {rate:,.0f} samples/s{bound}, {left} left")

    def _result(self, scores: ClickMetrics) -> dict[str, Any]:
        """The final figures; the speed leaves out the first report, which holds warm-up, where there are others."""
        total = self._schedule.total_steps
        step, seconds = self._marks[1] if len(self._marks) > 2 else self._marks[0]
        measured = self._marks[-1][1] - seconds
        rows = self._schedule.rows_after(total) - self._schedule.rows_after(step)
        return {
            **scores.as_dict(),
            "split": self._eval.split,
            "steps": total,
            "samples": self._schedule.rows_after(total),
            "samples_per_s": rows / measured if measured else 0.0,
            "train_seconds": self._watch.seconds,
        }

    def _write(self, line: dict[str, Any]) -> None:
        if self._here.is_main:
            self._folder.report(line)

    def _say(self, line: str) -> None:
        if self._here.is_main:
            print(line, flush=True)

"""What a run measures of its training: the loss, the time, the speed."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dlrm_dist.checkpoint.folder import Progress
from dlrm_dist.data.batch import ClickBatch
from dlrm_dist.epochs import Epochs
from dlrm_dist.errors import RunFailedError
from dlrm_dist.metrics import MetricState, figures
from dlrm_dist.models.task import Predictions
from dlrm_dist.monitor import Standing
from dlrm_dist.runtime import Session

_SCORES = ("auc", "ne", "accuracy", "calibration")


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


def peak_memory(device: torch.device) -> dict[str, float]:
    """The most MiB that this process has held so far: of the host's memory, and tensors on its GPU if it has one."""
    # getrusage's figure would count the launcher that started the process, too.
    (peak,) = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line]
    found = {"host_peak_mib": int(peak) / 1024}
    if device.type == "cuda":
        found["gpu_peak_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
    return found


class Meter:
    """Sums of a run's steps, and the lines that come of them."""

    def __init__(self, here: Session, epochs: Epochs, done: int, progress: Progress) -> None:
        """Begin, or go on behind `done` steps with the sums of a checkpoint."""
        self.watch = Stopwatch(progress.train_seconds)
        self._here, self._epochs = here, epochs
        self._marks = [(done, progress.train_seconds)]  # (step, training seconds) of each report
        self._reported_step = progress.reported_step
        # Of this rank, since the last report; the mean over ranks is reported, so each goes on with the whole sum.
        self._loss = torch.tensor(progress.loss_sum, dtype=torch.float64, device=here.device)
        self._scores = MetricState(here.device)
        self._begun = done
        self._epoch_totals: Tensor | None = None  # of the reports since the epoch's beginning, or the run's own
        self._bad_step = torch.zeros((), dtype=torch.int64, device=here.device)  # first one whose loss is not finite

    def add(self, predictions: Predictions, step: int) -> None:
        """Take a step's loss and scores, without waiting for the device."""
        loss, logits, labels, weights = predictions
        self._scores.update(logits, labels, weights)  # .09 ms of a step of 40, B 2,048, one core
        self._loss += loss
        is_first_bad = ~torch.isfinite(loss) & (self._bad_step == 0)
        self._bad_step.masked_fill_(is_first_bad, step)

    def progress(self, standing: Standing) -> Progress:
        """The sums and the standing, for a checkpoint. Collective."""
        return Progress(
            loss_sum=self._loss_sum(),
            reported_step=self._reported_step,
            train_seconds=self.watch.seconds,
            standing=standing,
        )

    def check_losses(self) -> None:
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

    def report(self, step: int, input_seconds: float) -> dict[str, Any]:
        """Loss, scores and speed of the steps since the last report. Collective; due at each epoch's end.

        A row is scored before the model learns from it. `epoch` and `batch` (within it) count from 1. `epoch_loss` and
        `epoch_auc` are those of the epoch so far, of `epoch_samples` rows: behind a resume, those since.
        """
        self.check_losses()
        mean_loss = self._loss_sum() / (step - self._reported_step)
        last_step, last_seconds = self._marks[-1]
        seconds = self.watch.seconds
        self._marks.append((step, seconds))
        self._reported_step = step
        self._loss.zero_()
        totals = self._scores.totals()
        self._scores = MetricState(self._here.device)
        so_far = totals if self._epoch_totals is None else self._epoch_totals + totals
        ends_epoch = self._epochs.position(step).ends_epoch
        self._epoch_totals = None if ends_epoch else so_far
        scores, of_epoch = figures(totals).as_dict(), figures(so_far)
        rows = self._epochs.rows_after(step)
        epoch_began = (step - 1) // self._epochs.steps_per_epoch * self._epochs.steps_per_epoch
        epoch_samples = rows - self._epochs.rows_after(max(epoch_began, self._begun))
        rate = (rows - self._epochs.rows_after(last_step)) / (seconds - last_seconds)
        return {
            "step": step,
            "split": "train",
            "epoch": epoch_began // self._epochs.steps_per_epoch + 1,
            "batch": step - epoch_began,
            "samples": rows,
            "loss": mean_loss,
            **{name: scores[name] for name in _SCORES},
            "epoch_loss": of_epoch.log_loss,
            "epoch_auc": of_epoch.auc,
            "epoch_samples": epoch_samples,
            "ends_epoch": ends_epoch,
            "samples_per_s": rate,
            "step_ms": (seconds - last_seconds) / (step - last_step) * 1e3,
            "split_ms": {"input": input_seconds / (step - last_step) * 1e3},
            "seconds_left": (self._epochs.rows_after(self._epochs.total_steps) - rows) / rate,
        }

    def result(self, last_step: int) -> dict[str, Any]:
        """The final figures; the speed leaves out the first report, which holds warm-up, where there are others."""
        step, seconds = self._marks[1] if len(self._marks) > 2 else self._marks[0]
        measured = self._marks[-1][1] - seconds
        rows = self._epochs.rows_after(last_step) - self._epochs.rows_after(step)
        return {
            "steps": last_step,
            "samples": self._epochs.rows_after(last_step),
            "samples_per_s": rows / measured if measured else 0.0,
            "train_seconds": self.watch.seconds,
        }

    def _loss_sum(self) -> float:
        """Of the steps since the last report, the mean over ranks; waits for the device. Collective."""
        loss = self._loss / self._here.world_size
        dist.all_reduce(loss)
        return loss.item()

"""What a run reports as TensorBoard's curves: `tensorboard --logdir runs`."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from dlrm_dist.listeners import Line, Listener

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
_TRAINING = {
    "loss": "log_loss/train",
    "auc": "auc/train",
    "ne": "ne/train",
    "accuracy": "accuracy/train",
    "calibration": "calibration/train",
    "samples_per_s": "speed/samples_per_s",
    "step_ms": "speed/step_ms",
    "lr_sparse": "learning_rate/sparse",
    "lr_dense": "learning_rate/dense",
    "host_peak_mib": "memory/host_peak_mib",
    "gpu_peak_mib": "memory/gpu_peak_mib",
}
"""Tags of a training report's figures; TensorBoard groups them by what stands before the slash."""
_NOT_SCORES = ("step", "split", "samples")


class TensorBoard(Listener):
    """Writes each figure as a scalar. A run that goes on adds to its curves, and replaces what it does again."""

    def __init__(self, run: Path) -> None:
        self._folder = run / FOLDER
        self._writer: SummaryWriter | None = None

    def begins(self, done: int, total: int) -> None:
        """Open a file of events; what older ones tell of the steps behind `done` no longer counts."""
        from torch.utils.tensorboard import SummaryWriter  # half a second, which ranks that do not write are spared

        self._writer = SummaryWriter(str(self._folder), purge_step=done + 1)

    def trained(self, line: Line) -> None:
        """Loss, speed, learning rates, memory, and the parts of the step."""
        for key, tag in _TRAINING.items():
            if key in line:
                self._add(tag, line[key], line["step"])
        for part, milliseconds in line["split_ms"].items():
            self._add(f"step_ms/{part}", milliseconds, line["step"])

    def scored(self, line: Line) -> None:
        """Each score under the split's name."""
        for key, value in line.items():
            if key not in _NOT_SCORES and isinstance(value, int | float):
                self._add(f"{key}/{line['split']}", value, line["step"])

    def ends(self, result: Line | None) -> None:
        """Close the file."""
        if self._writer:
            self._writer.close()

    def _add(self, tag: str, value: float, step: int) -> None:
        if self._writer and math.isfinite(value):
            self._writer.add_scalar(tag, value, step)

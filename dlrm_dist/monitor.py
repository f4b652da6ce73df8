"""The scores of validation over time: which was the best, when learning rates drop, and when training ends early."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from dlrm_dist.config import ScheduleSection

_VALUES = {
    "auc": lambda scores: scores["auc"],
    "log_loss": lambda scores: -scores["log_loss"],
    "auc_minus_log_loss": lambda scores: scores["auc"] - scores["log_loss"],
}
"""What is monitored, such that more is better."""


class Standing(BaseModel):
    """What validation has shown so far.

    Attributes:
        best: value of the best evaluation, more is better; None before the first.
        best_step: its step.
        stale: evaluations since then.
        drops: times that the learning rates were dropped.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    best: float | None = None
    best_step: int = 0
    stale: int = 0
    drops: int = 0

    def after(self, section: ScheduleSection, step: int, scores: Mapping[str, float]) -> "Standing":
        """The standing with one more evaluation.

        As in FuxiCTR, where a score is as good as before it is `stale`, and rates drop and training ends by `stale`
        evaluations in a row; unlike there, patience may be more than 1. A score that is not a number is no better.
        """
        value = _VALUES[section.monitor](scores)
        if self.best is None or value >= self.best + section.min_delta:
            return self.model_copy(update={"best": value, "best_step": step, "stale": 0})
        stale = self.stale + 1
        drops = section.decay == "plateau" and stale % section.patience == 0
        return self.model_copy(update={"stale": stale, "drops": self.drops + drops})

    def factor(self, section: ScheduleSection) -> float:
        """What the drops multiply the learning rates by."""
        return max(section.factor**self.drops, section.end_factor) if self.drops else 1.0

    def is_over(self, section: ScheduleSection) -> bool:
        """Whether training ends here."""
        return section.stop_patience is not None and self.stale >= section.stop_patience

"""Validation over time: which AUC was the best, when learning rates drop, and when training ends early."""

from pydantic import BaseModel, ConfigDict

from dlrm_dist.sections import ScheduleSection


class Standing(BaseModel):
    """What validation has shown so far.

    Attributes:
        best: AUC of the best evaluation; None before the first.
        best_step: its step.
        stale: evaluations since then.
        drops: times that the learning rates were dropped.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    best: float | None = None
    best_step: int = 0
    stale: int = 0
    drops: int = 0

    def after(self, section: ScheduleSection, step: int, auc: float) -> "Standing":
        """The standing with one more evaluation.

        As in FuxiCTR, an AUC that is not better by `min_delta` is stale, and an AUC that is not a number never is
        better; FuxiCTR's patience for drops is 1.
        """
        if auc >= (0.0 if self.best is None else self.best + section.min_delta):
            return self.model_copy(update={"best": auc, "best_step": step, "stale": 0})
        stale = self.stale + 1
        drops = section.decay == "plateau" and stale % section.patience == 0
        return self.model_copy(update={"stale": stale, "drops": self.drops + drops})

    def factor(self, section: ScheduleSection) -> float:
        """What the drops multiply the learning rates by."""
        return max(section.factor**self.drops, section.end_factor) if self.drops else 1.0

    def is_over(self, section: ScheduleSection) -> bool:
        """Whether training ends here."""
        tired = section.stop_patience is not None and self.stale >= section.stop_patience
        reached = section.target_auc is not None and self.best is not None and self.best >= section.target_auc
        return tired or reached

    def told(self, section: ScheduleSection) -> dict[str, int]:
        """What a report says of it, where something depends on it."""
        watched = section.decay == "plateau" or section.stop_patience is not None
        return self.model_dump(include={"best_step", "stale", "drops"}) if watched else {}

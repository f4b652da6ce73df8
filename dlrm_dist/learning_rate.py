"""What the learning rates are multiplied by at each step: warm-up, then a decay by the clock."""

import math

from dlrm_dist.errors import UserError
from dlrm_dist.sections import TIMED_DECAYS, ScheduleSection


def check_length(section: ScheduleSection, total_steps: int) -> None:
    """Refuse a schedule that the run is too short for.

    Raises:
        UserError: the warm-up, or what is to decay behind it, ends after the run.
    """
    start, ends = _start(section), {}
    ends[f"the warm-up (schedule.warmup_steps) ends with step {section.warmup_steps}"] = section.warmup_steps
    if section.decay in TIMED_DECAYS:
        ends[f"the {section.decay} decay (schedule.start) begins behind step {start}"] = start + 1
    if section.steps:
        what = "has its first drop behind" if section.decay == "step" else "ends with"
        end = start + section.steps + (section.decay == "step")
        ends[f"the {section.decay} decay {what} step {start} + {section.steps} (schedule.start, schedule.steps)"] = end
    for what, end in ends.items():
        if end > total_steps:
            raise UserError(
                f"{what}, and the run has {total_steps} steps; shorten the schedule, or train longer (train.epochs, "
                "train.max_steps)"
            )


def factor_at(section: ScheduleSection, step: int, total_steps: int) -> float:
    """What the learning rates are multiplied by at `step` (from 0) of so many, drops of `plateau` not counted.

    With t steps done of a decay of D and the end factor e: ((D - t) / D)^power (1 - e) + e for `polynomial` (the
    paper's code and MLPerf have power 2, e 0), (1 + cos(pi t / D)) / 2 (1 - e) + e for `cosine`, factor^(t // steps),
    e at least, for `step`.
    """
    if step < section.warmup_steps:
        return (step + 1) / section.warmup_steps
    start, end = _start(section), section.end_factor
    if step < start or section.decay in ("none", "plateau"):
        return 1.0
    if section.decay == "step":
        assert section.steps  # the section has seen to it
        return max(section.factor ** ((step - start) // section.steps), end)
    done = min(1.0, (step - start) / (section.steps or total_steps - start))
    left = (1 - done) ** section.power if section.decay == "polynomial" else (1 + math.cos(math.pi * done)) / 2
    return left * (1 - end) + end


def decay_of(section: ScheduleSection, total_steps: int) -> tuple[int, int]:
    """The steps before a decay by the clock, and those it takes (of `step`, those between drops); 0, 0 for none."""
    if section.decay not in TIMED_DECAYS:
        return 0, 0
    start = _start(section)
    return start, section.steps or total_steps - start


def _start(section: ScheduleSection) -> int:
    return section.warmup_steps if section.start is None else section.start

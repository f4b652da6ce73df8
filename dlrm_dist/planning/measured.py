"""What a run measured of its steps, for a comparison with what its plan predicted."""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from dlrm_dist.errors import UserError


@dataclass(frozen=True)
class Measured:
    """Medians over a run's reports, without the first, which holds the warm-up: milliseconds of a step."""

    run: str
    step: float
    parts: dict[str, float]
    """Those parts that the run could tell apart; at least `input`, the time spent waiting for a batch."""
    reports: int


def read_run(folder: Path) -> Measured:
    """The step times of a run folder.

    Raises:
        UserError: it is no run folder, or the run was too short to have measured a step.
    """
    path = folder / "metrics.jsonl"
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        reports = [line for line in lines if line["split"] == "train" and "step_ms" in line]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: is not the folder of a run: {error}; name runs/NAME") from None
    reports = reports[1:] or reports
    if not reports:
        raise UserError(f"{folder}: the run has reported no step times; train it for longer, or lower train.log_every")
    names = set.intersection(*(set(line["split_ms"]) for line in reports))
    return Measured(
        run=str(folder),
        step=median(line["step_ms"] for line in reports),
        parts={name: median(line["split_ms"][name] for line in reports) for name in sorted(names)},
        reports=len(reports),
    )

"""Charts of what runs measured."""

from collections.abc import Sequence
from typing import Any

from dlrm_dist.pages import charts
from dlrm_dist.pages.charts import Curve
from dlrm_dist.runs.record import Record

_PARTS = {
    "input": "#b279a2",
    "copy": "#d6a5c9",
    "id_exchange": "#f58518",
    "lookup": "#4c78a8",
    "forward_exchange": "#e45756",
    "dense_forward": "#54a24b",
    "dense_backward": "#88d27a",
    "backward_exchange": "#ff9d98",
    "update": "#9ecae9",
    "all_reduce": "#eeca3b",
    "dense_optimizer": "#439894",
    "overhead": "#9d9da1",
}
"""Parts of a step (of step_split.py) in the order in which it goes through them."""
_OTHER = "not told apart"


def curves_of(runs: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Charts by name of what the runs measured, each run in a colour of its own where there are several."""
    found = {
        "Log loss": _chart(runs, {"train": ("train", "loss"), "valid": ("scores", "log_loss")}, "nats"),
        "AUC": _chart(runs, _both("auc")),
        "Normalised entropy": _chart(runs, _both("ne")),
        "Throughput": _chart(runs, {"train": ("train", "samples_per_s")}, "samples/s"),
        "Learning rates": _chart(runs, {"sparse": ("train", "lr_sparse"), "dense": ("train", "lr_dense")}),
        "Memory of rank 0, peak": _chart(
            runs, {"host": ("train", "host_peak_mib"), "GPU": ("train", "gpu_peak_mib")}, "MiB"
        ),
    }
    return {name: chart for name, chart in found.items() if chart}


def step_parts(run: Record) -> dict[str, Any] | None:
    """Stacked bars of a step's milliseconds by part, a bar a report; None where none was reported."""
    stacks = [_parts(line) for line in run.train]
    if not stacks:
        return None
    names = [name for name in (*_PARTS, _OTHER) if any(name in stack for stack in stacks)]
    colours = {name: _PARTS.get(name, "#c5c8cc") for name in names}
    return charts.bars(stacks, [f"step {line['step']:,}" for line in run.train], colours, "ms")


def _parts(line: dict[str, Any]) -> dict[str, float]:
    """A report's parts of a step; without a profile only the wait for the input is known."""
    parts = {name: float(value) for name, value in line["split_ms"].items()}
    rest = line["step_ms"] - sum(parts.values())
    return {**parts, _OTHER: rest} if rest > 1e-6 * line["step_ms"] else parts


def _both(key: str) -> dict[str, tuple[str, str]]:
    """A score of the rows trained on, before the model learnt from them, and of the validation."""
    return {"train": ("train", key), "valid": ("scores", key)}


def _chart(runs: Sequence[Record], kinds: dict[str, tuple[str, str]], unit: str = "") -> dict[str, Any] | None:
    """One curve a run and kind, which says in which lines of a record, and there under which key, its values are."""
    several = len(runs) > 1
    drawn = [
        Curve(
            name=f"{run.name} {kind}" if several and len(kinds) > 1 else run.name if several else kind,
            colour=number if several else place,
            points=[(line["step"], line[key]) for line in getattr(run, lines) if line.get(key) is not None],
            dashed=several and place > 0,
        )
        for number, run in enumerate(runs)
        for place, (kind, (lines, key)) in enumerate(kinds.items())
    ]
    return charts.curves(drawn, unit)

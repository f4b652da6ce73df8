"""A plan's explanation as one self-contained HTML page, with a picture of what lies where."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from dlrm_dist.errors import UserError
from dlrm_dist.planning.cluster import GIB
from dlrm_dist.planning.plan_file import PlanFile

_MOST_BARS = 128
"""With more ranks a bar is the mean rank of several neighbours."""
_PARTS = ("lookup", "update", "id_exchange", "forward_exchange", "backward_exchange")
_PART_COLOURS = ("#4c78a8", "#9ecae9", "#f58518", "#e45756", "#ff9d98")


def write(found: dict[str, Any], plan: PlanFile, path: Path) -> None:
    """Write the page for an explanation (of `explain.explain`) of `plan`.

    Raises:
        UserError: it cannot be written.
    """
    source = files("dlrm_dist.planning").joinpath("page.html.j2").read_text()
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    html = template.from_string(source).render(
        **found,
        memory=_memory(found, plan),
        time=_time(found),
        part_colours=dict(zip(_PARTS, _PART_COLOURS, strict=True)),
    )
    try:
        path.write_text(html)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; name a file in a folder that exists") from None


def _memory(found: dict[str, Any], plan: PlanFile) -> dict[str, Any]:
    """Bars of GiB by table: on each rank, what of it lies there."""
    names = [table["name"] for table in found["tables"]]
    per_rank: list[dict[str, float]] = [{} for _ in found["ranks"]]
    for name in names:
        for shard in plan.estimates[name].shards:
            here = per_rank[shard.rank]
            here[name] = here.get(name, 0.0) + (shard.hbm + shard.ddr) / GIB
    colours = {
        name: f"hsl({360 * i * 7 // max(1, len(names)) % 360} 55% {(45, 60, 72)[i % 3]}%)"
        for i, name in enumerate(names)
    }
    cap = found["caps"]["hbm_gib"] or found["caps"]["ddr_gib"]
    return {"colours": colours, **_bars(per_rank, colours, "GiB", cap)}


def _time(found: dict[str, Any]) -> dict[str, Any]:
    """Bars of milliseconds by part of the embedding work."""
    per_rank = [{part: rank[part] for part in _PARTS} for rank in found["ranks"]]
    return _bars(per_rank, dict(zip(_PARTS, _PART_COLOURS, strict=True)), "ms", None)


def _bars(per_rank: list[dict[str, float]], colours: dict[str, str], unit: str, cap: float | None) -> dict[str, Any]:
    """Rectangles in a picture of 1000 x 260: a stacked bar for each rank, or for each few neighbouring ranks."""
    width, height = 1000.0, 260.0
    each = -(-len(per_rank) // _MOST_BARS)
    groups = [range(first, min(first + each, len(per_rank))) for first in range(0, len(per_rank), each)]
    stacks = [
        {name: sum(per_rank[rank].get(name, 0.0) for rank in group) / len(group) for name in colours}
        for group in groups
    ]
    highest = max(sum(stack.values()) for stack in stacks)
    top = max(highest, min(cap or 0.0, 3 * highest)) or 1.0
    step = width / len(groups)
    rectangles = []
    for number, (group, stack) in enumerate(zip(groups, stacks, strict=True)):
        y = height
        label = f"rank {group[0]}" if len(group) == 1 else f"ranks {group[0]}-{group[-1]}"
        for name, value in stack.items():
            if value > 0:
                tall = value / top * height
                y -= tall
                rectangles.append(
                    {
                        "x": round(number * step + 0.05 * step, 2),
                        "y": round(y, 2),
                        "width": round(0.9 * step, 2),
                        "height": round(tall, 2),
                        "colour": colours[name],
                        "title": f"{label}: {name}, {value:.3f} {unit}",
                    }
                )
    return {
        "rectangles": rectangles,
        "top": f"{top:.2f} {unit}",
        "cap_y": None if not cap or cap > top else round(height - cap / top * height, 2),
        "cap": None if not cap else f"{cap:.1f} {unit}",
        "ranks_per_bar": each,
    }

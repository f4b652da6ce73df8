"""A plan's explanation as one self-contained HTML page, with a picture of what lies where."""

from pathlib import Path
from typing import Any

from dlrm_dist.pages import charts, html
from dlrm_dist.planning.cluster import GIB
from dlrm_dist.planning.plan_file import PlanFile

_PART_COLOURS = {
    "lookup": "#4c78a8",
    "update": "#9ecae9",
    "id_exchange": "#f58518",
    "forward_exchange": "#e45756",
    "backward_exchange": "#ff9d98",
}
_MIB = ("MiB", 1 << 20)


def write(found: dict[str, Any], plan: PlanFile, path: Path) -> None:
    """Write the page for an explanation (of `explain.explain`) of `plan`.

    Raises:
        UserError: it cannot be written.
    """
    html.write("plan.html.j2", path, **found, pictures=pictures(found, plan))


def pictures(found: dict[str, Any], plan: PlanFile) -> dict[str, Any]:
    """Of an explanation of `plan`: charts of each rank's memory by table and of its embedding work by part."""
    labels = [f"rank {number}" for number in range(len(found["ranks"]))]
    work = [{part: rank[part] for part in _PART_COLOURS} for rank in found["ranks"]]
    return {"memory": _memory(found, plan, labels), "time": charts.bars(work, labels, _PART_COLOURS, "ms")}


def _memory(found: dict[str, Any], plan: PlanFile, labels: list[str]) -> dict[str, Any]:
    """Bars of GiB, or MiB for small tables, by table: on each rank, what of it lies there."""
    names = [table["name"] for table in found["tables"]]
    per_rank: list[dict[str, float]] = [{} for _ in labels]
    unit, size = ("GiB", GIB) if any(rank["hbm_gib"] + rank["ddr_gib"] > 0.1 for rank in found["ranks"]) else _MIB
    for name in names:
        for shard in plan.estimates[name].shards:
            here = per_rank[shard.rank]
            here[name] = here.get(name, 0.0) + (shard.hbm + shard.ddr) / size
    colours = {
        name: f"hsl({360 * i * 7 // max(1, len(names)) % 360} 55% {(45, 60, 72)[i % 3]}%)"
        for i, name in enumerate(names)
    }
    cap_gib = found["caps"]["hbm_gib"] or found["caps"]["ddr_gib"]
    return charts.bars(per_rank, labels, colours, unit, cap_gib * GIB / size)

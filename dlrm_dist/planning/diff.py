"""Two plans side by side: which tables moved, and what that changes in memory and time."""

from typing import Any

from dlrm_dist.planning import step
from dlrm_dist.planning.cluster import GIB
from dlrm_dist.planning.plan_file import PlanFile, TableSharding, rank_text


def compare(old: PlanFile, new: PlanFile) -> dict[str, Any]:
    """The differences as plain values; `tables` names those that moved, came or went."""
    before, after = dict(old.placed()), dict(new.placed())
    names = list(dict.fromkeys((*before, *after)))
    tables = {
        name: {"old": _place(before.get(name)), "new": _place(after.get(name))}
        for name in names
        if _key(before.get(name)) != _key(after.get(name))
    }
    steps = {"old": step.predict(old), "new": step.predict(new)}
    plans = {"old": old, "new": new}
    return {
        "tables": tables,
        "unmoved": len(names) - len(tables),
        "ranks": {key: plan.world_size for key, plan in plans.items()},
        "hbm_gib": {key: max(load.hbm for load in step.rank_loads(plan)) / GIB for key, plan in plans.items()},
        "ddr_gib": {key: max(load.ddr for load in step.rank_loads(plan)) / GIB for key, plan in plans.items()},
        "step_ms": {key: {"serial": s.serial, "overlapped": s.overlapped} for key, s in steps.items()},
        "parts_ms": {part: {key: s.parts[part] for key, s in steps.items()} for part in step.PARTS},
        "inputs": _changed_inputs(old, new),
    }


def text(old: PlanFile, new: PlanFile) -> list[str]:
    """The differences as lines."""
    found = compare(old, new)
    lines = [f"{name}: {each['old']} -> {each['new']}" for name, each in found["tables"].items()]
    lines.append(f"{len(found['tables'])} tables moved, {found['unmoved']} stay where they are")
    if found["inputs"]:
        lines.append(f"made from other inputs: {', '.join(found['inputs'])}")
    for label, key in (("ranks", "ranks"), ("largest HBM of a rank, GiB", "hbm_gib"), ("largest DDR, GiB", "ddr_gib")):
        lines.append(_change(label, found[key]["old"], found[key]["new"]))
    for bound in ("serial", "overlapped"):
        times = found["step_ms"]
        lines.append(_change(f"predicted step, {bound}, ms", times["old"][bound], times["new"][bound]))
    lines += [
        _change(f"  {part}, ms", each["old"], each["new"])
        for part, each in found["parts_ms"].items()
        if abs(each["new"] - each["old"]) > 5e-4
    ]
    return lines


def _change(label: str, old: float, new: float) -> str:
    percent = f" ({(new - old) / old:+.1%})" if old else ""
    number = (lambda value: f"{value:,d}") if isinstance(old, int) else (lambda value: f"{value:.3f}")
    return f"{label}: {number(old)} -> {number(new)}{percent}"


def _key(sharding: TableSharding | None) -> object:
    return (
        None if sharding is None else (sharding.sharding_type, sharding.compute_kernel, sharding.ranks, sharding.shards)
    )


def _place(sharding: TableSharding | None) -> str:
    if sharding is None:
        return "not there"
    return f"{sharding.sharding_type} {sharding.compute_kernel} on {rank_text(sharding.ranks)}"


def _changed_inputs(old: PlanFile, new: PlanFile) -> list[str]:
    names = type(old.inputs).model_fields
    return [name for name in names if getattr(old.inputs, name) != getattr(new.inputs, name)]

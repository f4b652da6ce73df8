"""Why a plan is as it is: each table, each rank, the predicted step; as values, as text, as a page."""

from collections.abc import Iterator
from typing import Any

from dlrm_dist.planning import check, step
from dlrm_dist.planning.cluster import GIB, Constants
from dlrm_dist.planning.measured import Measured
from dlrm_dist.planning.plan_file import Alternative, PlanFile, Table, rank_text

_RANKS_SHOWN = 32


def explain(plan: PlanFile, measured: Measured | None = None) -> dict[str, Any]:
    """All that the other forms show, as plain values. Times are in milliseconds, memory is in GiB."""
    predicted = step.predict(plan)
    loads = step.rank_loads(plan)
    hbm_cap, ddr_cap = plan.inputs.cluster.memory_bytes()
    slowest = max(load.total for load in loads)
    placed = dict(plan.placed())
    slow, fast = predicted.samples_per_s()
    return {
        "plan": {
            "model": plan.inputs.dense.name,
            "tables": len(plan.inputs.tables),
            "rows": sum(table.rows for table in plan.inputs.tables),
            "cluster": plan.inputs.cluster.name,
            "size": plan.inputs.cluster.size,
            "device": plan.inputs.cluster.device,
            "ranks": plan.world_size,
            "batch_size": plan.inputs.batch_size,
            "optimizer": plan.inputs.optimizer,
            "constraints": plan.inputs.constraints_file,
            "sharding_types": list(plan.inputs.sharding_types),
            "versions": plan.inputs.versions,
            "digest": plan.digest,
        },
        "tables": [
            _table(plan, table, slowest)
            for table in plan.inputs.tables
            if table.name in placed and table.name in plan.estimates
        ],
        "ranks": [
            {
                "rank": load.rank,
                "hbm_gib": load.hbm / GIB,
                "ddr_gib": load.ddr / GIB,
                "ms": load.total,
                **load.milliseconds,
            }
            for load in loads
        ],
        "caps": {"hbm_gib": hbm_cap / GIB, "ddr_gib": ddr_cap / GIB},
        "step": {
            "parts": predicted.parts,
            "resources": predicted.resources(),
            "serial": predicted.serial,
            "overlapped": predicted.overlapped,
            "samples_per_s": {"serial": slow, "overlapped": fast},
            "bound": predicted.bound,
            "slowest_rank": predicted.slowest_rank,
            "imbalance": predicted.imbalance,
        },
        "measured": None if measured is None else _measured(predicted, measured),
        "constants": {
            name: {**getattr(plan.inputs.cluster.constants, name).model_dump(), "meaning": field.description}
            for name, field in Constants.model_fields.items()
        },
        "problems": check.problems(plan),
    }


def text(found: dict[str, Any]) -> Iterator[str]:
    """The explanation as lines."""
    plan, caps = found["plan"], found["caps"]
    yield (
        f"{plan['model']}: {plan['tables']} tables, {plan['rows']:,} rows, {plan['optimizer']}, on {plan['cluster']} "
        f"{plan['size']} ({plan['ranks']} ranks), global batch {plan['batch_size']:,}"
    )
    yield from (f"problem: {line}" for line in found["problems"])
    yield ""
    yield (
        f"{'table':<10} {'rows':>12} {'sharding':<18} {'kernel':<10} {'ranks':<9} {'GiB':>8} {'lookup':>8} "
        f"{'update':>8} "
        f"{'ids':>8} {'fwd exch':>8} {'bwd exch':>8}  next best, and the slowest rank's ms with it"
    )
    for each in found["tables"]:
        parts = each["slowest_shard"]
        yield (
            f"{each['name']:<10} {each['rows']:>12,} {each['sharding_type']:<18} {each['compute_kernel']:<10.10} "
            f"{each['ranks']:<9.9} {each['gib']:>8.3f} {parts['lookup']:>8.3f} {parts['update']:>8.3f} "
            f"{parts['id_exchange']:>8.3f} {parts['forward_exchange']:>8.3f} {parts['backward_exchange']:>8.3f}  "
            f"{_next_best(each)}"
        )
    yield "(GiB on all ranks together; ms of the table's slowest shard)"
    yield ""
    yield f"{'rank':>5} {'HBM GiB':>9} {'of cap':>7} {'DDR GiB':>9} {'embedding ms':>13}"
    ranks = found["ranks"]
    shown = ranks if len(ranks) <= _RANKS_SHOWN else sorted(ranks, key=lambda rank: -rank["ms"])[:8]
    for rank in shown:
        cap, have = (caps["hbm_gib"], rank["hbm_gib"]) if caps["hbm_gib"] else (caps["ddr_gib"], rank["ddr_gib"])
        yield (
            f"{rank['rank']:>5} {rank['hbm_gib']:>9.2f} {have / cap:>7.1%} {rank['ddr_gib']:>9.2f} {rank['ms']:>13.3f}"
        )
    if len(shown) < len(ranks):
        yield f"  … the {len(shown)} slowest of {len(ranks)}; --json has all"
    yield f"cap of a rank: {caps['hbm_gib']:.1f} GiB of HBM, {caps['ddr_gib']:.1f} GiB of DDR, the reserve taken off"
    yield ""
    yield from _step_text(found)


def _rank(load: step.RankLoad) -> dict[str, Any]:
    memory = {"hbm_gib": load.hbm / GIB, "ddr_gib": load.ddr / GIB}
    return {"rank": load.rank, **memory, "ms": load.total, **load.milliseconds}


def _table(plan: PlanFile, table: Table, slowest: float) -> dict[str, Any]:
    sharding = dict(plan.placed())[table.name]
    estimate = plan.estimates[table.name]
    shard = max(estimate.shards, key=lambda each: each.milliseconds)
    best = estimate.alternatives[0] if estimate.alternatives else None
    return {
        "name": table.name,
        "rows": table.rows,
        "dim": table.dim,
        "ids_per_sample": list(table.ids_per_sample),
        "sharding_type": sharding.sharding_type,
        "compute_kernel": sharding.compute_kernel,
        "ranks": rank_text(sharding.ranks),
        "gib": sum(each.hbm + each.ddr for each in estimate.shards) / GIB,
        "ms": sum(each.milliseconds for each in estimate.shards),
        "slowest_shard": step.embedding_parts([shard]),
        "next_best": None if best is None else _alternative(best, slowest),
        "alternatives": [_alternative(each, slowest) for each in estimate.alternatives],
    }


def _alternative(each: Alternative, slowest: float) -> dict[str, Any]:
    return {
        "sharding_type": each.sharding_type,
        "compute_kernel": each.compute_kernel,
        "gib": each.bytes / GIB,
        "slowest_rank_ms": each.slowest_rank,
        "change_ms": None if each.slowest_rank is None else each.slowest_rank - slowest,
    }


def _next_best(table: dict[str, Any]) -> str:
    best = table["next_best"]
    if best is None:
        return "no other choice is allowed"
    if best["slowest_rank_ms"] is None:
        return f"{best['sharding_type']} {best['compute_kernel']}: does not fit"
    return f"{best['sharding_type']} {best['compute_kernel']}: {best['slowest_rank_ms']:.3f} ({best['change_ms']:+.3f})"


def _measured(predicted: step.Step, measured: Measured) -> dict[str, Any]:
    return {
        "run": measured.run,
        "reports": measured.reports,
        "step": measured.step,
        "parts": measured.parts,
        "over_serial": measured.step / predicted.serial,
        "over_overlapped": measured.step / predicted.overlapped,
    }


def _step_text(found: dict[str, Any]) -> Iterator[str]:
    predicted, measured = found["step"], found["measured"]
    column = f"{'measured':>10}" if measured else ""
    yield f"{'step, ms':<20} {'predicted':>10} {column}"
    for part, value in predicted["parts"].items():
        mine = measured["parts"].get(part) if measured else None
        yield f"  {part:<18} {value:>10.3f} {'' if mine is None else f'{mine:>10.3f}'}".rstrip()
    for part, value in measured["parts"].items() if measured else ():
        if part not in predicted["parts"]:
            yield f"  {part:<18} {'':>10} {value:>10.3f}"
    rates = predicted["samples_per_s"]
    yield f"  serial             {predicted['serial']:>10.3f} ms, {rates['serial']:,.0f} samples/s"
    yield f"  overlapped         {predicted['overlapped']:>10.3f} ms, {rates['overlapped']:,.0f} samples/s"
    if measured:
        yield (
            f"  measured           {measured['step']:>10.3f} ms, {measured['over_serial']:.2f} of serial, "
            f"{measured['over_overlapped']:.2f} of overlapped ({measured['run']}, {measured['reports']} reports)"
        )
    yield (
        f"bound by {predicted['bound']}; slowest rank {predicted['slowest_rank']}; imbalance "
        f"{predicted['imbalance']:.2f} (its embedding time over the mean)"
    )
    kinds = [each["kind"] for each in found["constants"].values()]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in ("measured", "published", "assumed"))
    yield f"by the constants of cluster {found['plan']['cluster']}: {counts}; --json names each with its source"

"""The plan of a training run: a given file, or one made on the spot for the machine at hand."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from dlrm_dist import memory
from dlrm_dist.errors import UserError
from dlrm_dist.models.shape import ModelShape
from dlrm_dist.planning import check, cluster, diff, plan_file
from dlrm_dist.planning.cluster import GIB, HERE, Cluster
from dlrm_dist.planning.make import plan_model
from dlrm_dist.planning.plan_file import PlanFile, Table
from dlrm_dist.planning.planner import Request
from dlrm_dist.planning.tables import model_tables
from dlrm_dist.sections import ModelSection, OptimizerSection, ShardingSection


def plan_of_run(
    sharding: ShardingSection,
    model: ModelSection,
    optimizer: OptimizerSection,
    shape: ModelShape,
    machine: Cluster,
    request: Request,
    restarted: bool,
    incomplete: bool = False,
) -> tuple[PlanFile, list[str]]:
    """The plan to train by, and lines to log about it.

    On another number of hosts than the given plan's, after a restart (`restarted`), or on fewer where more may still
    come (`incomplete`), it takes the plan file of that size beside the given one, else plans anew under the recorded
    constraints.

    Raises:
        UserError: the given plan is for another model or another number of ranks; no plan fits.
    """
    if sharding.plan is None:
        return plan_model(model, optimizer, shape, machine, request), []
    given = plan_file.read(sharding.plan)
    tables = model_tables(model, optimizer, shape)
    problems = check.model_problems(given, tables, optimizer.sparse) + check.shard_problems(given)
    if problems:
        raise UserError(
            f"{sharding.plan}: {problems[0]}{_more(problems)}; make one for this model: {_command(machine)}"
        )
    found = given.inputs.cluster
    if (found.hosts, found.devices_per_host, found.device) == (machine.hosts, machine.devices_per_host, machine.device):
        return given, []
    is_fewer = found.device == machine.device and machine.world_size < found.world_size
    if not restarted and not (incomplete and is_fewer):
        raise UserError(
            f"{sharding.plan}: is for {found.size} {found.device} ranks, this run has {machine.size} on "
            f"{machine.device}; make one: {_command(machine)}"
        )
    plan = _shipped(sharding.plan, machine, tables, optimizer.sparse)
    origin = f"the plan file of that size beside {sharding.plan}"
    if plan is None:
        old = given.inputs
        recorded = dataclasses.replace(
            request,
            batch_size=old.batch_size,
            sharding_types=old.sharding_types,
            rules=old.constraints,
            rules_file=old.constraints_file,
            comm_precision=old.comm_precision,
        )
        plan, origin = plan_model(model, optimizer, shape, machine, recorded), "a new plan under its constraints"
    began = "restarted" if restarted else "began"
    lines = [f"{began} on {machine.size} ranks, the plan was for {found.size}: using {origin}"]
    return plan, lines + diff.text(given, plan)


def machine_at_hand(
    sharding: ShardingSection, device: torch.device, world_size: int, local_world_size: int
) -> tuple[Cluster, list[str]]:
    """This run's machines as a cluster, with the memory found here, and lines to say about what had to be assumed.

    Raises:
        UserError: `sharding.cluster` is unknown, or is for another kind of device.
    """
    lines = []
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    if sharding.cluster:
        known: Cluster | None = cluster.load_cluster(sharding.cluster)
    else:
        known = cluster.cluster_of_device(device.type, gpu)
    if known is None:
        known = cluster.load_cluster("h100")
        lines.append(
            f"no cluster file knows {gpu}: the plan assumes an h100's speed; --sharding.cluster says otherwise"
        )
    if known.device != device.type:
        raise UserError(
            f"sharding.cluster {sharding.cluster} describes {known.device} devices, this run is on {device.type}; "
            "leave it out to plan for this machine"
        )
    sized = known.resized(-(-world_size // local_world_size), local_world_size)
    key = "hbm_gib" if device.type == "cuda" else "ddr_gib"
    if sharding.hbm_gib is not None:
        kept = sharding.hbm_gib / (1 - sized.value("reserved"))
        return sized.with_constant(key, kept, f"{HERE}: sharding.hbm_gib and the reserve"), lines
    if device.type == "cuda":
        size = torch.cuda.get_device_properties(device).total_memory / GIB
    else:
        size = memory.total() / GIB / local_world_size
    return sized.with_constant(key, size, HERE), lines


def _shipped(path: Path, machine: Cluster, tables: Sequence[Table], optimizer: str) -> PlanFile | None:
    """The sound plan beside `path` of the machine's size: <model>_<hosts>x<devices>_<hardware>.plan.json."""
    sibling = path.with_name(re.sub(r"_\d+x\d+_", f"_{machine.size}_", path.name))
    if sibling == path or not sibling.is_file():
        return None
    plan = plan_file.read(sibling)
    sized = (plan.inputs.cluster.size, plan.inputs.cluster.device) == (machine.size, machine.device)
    sound = not check.model_problems(plan, tables, optimizer) + check.shard_problems(plan)
    return plan if sized and sound else None


def _command(machine: Cluster) -> str:
    return f"dlrm-dist plan make --config CONFIG --cluster {machine.name}:{machine.size} --out NAME.plan.json"


def _more(problems: Sequence[str]) -> str:
    return f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""

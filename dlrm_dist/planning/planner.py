"""TorchRec's planner, set up for this project: which tables go to which ranks, cut in which way."""

import os

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.types import ShardingPlan, ShardingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from dlrm_dist.config import ShardingSection
from dlrm_dist.errors import UserError

GIB = 1 << 30
_RESERVED = 0.15
"""Share of a device's memory kept from the tables: activations, the dense part, communication buffers."""


class Sharder(EmbeddingBagCollectionSharder):  # type: ignore[misc]
    """All sharding types on every device: the stock sharder offers four on CPU, though all seven train there."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Every type that TorchRec knows."""
        return [kind.value for kind in ShardingType]


def make_plan(
    model: nn.Module,
    section: ShardingSection,
    device: torch.device,
    world_size: int,
    local_world_size: int,
    per_rank_batch_size: int,
) -> ShardingPlan:
    """Plan the model's tables for this run's ranks. Collective when a process group is up: global rank 0's plan counts.

    Raises:
        UserError: no plan fits; or a table cannot be sharded by any of `sharding.types`.
    """
    topology = _topology(section, device, world_size, local_world_size)
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=per_rank_batch_size,
        constraints=_constraints(model, section, world_size, local_world_size),
        storage_reservation=FixedPercentageStorageReservation(percentage=_RESERVED),
    )
    sharders = [Sharder()]
    try:
        if dist.is_initialized():
            plan = planner.collective_plan(model, sharders, dist.group.WORLD)
        else:
            plan = planner.plan(model, sharders)
    except PlannerError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"no sharding plan fits {world_size} ranks: {reason}; use more ranks, a smaller model.embedding_dim, "
            "or more sharding.types"
        ) from None
    _check_complete(model, plan)
    return plan


def tables(model: nn.Module) -> dict[str, int]:
    """Rows of each table of the model."""
    return {
        config.name: config.num_embeddings
        for module in model.modules()
        if isinstance(module, EmbeddingBagCollection)
        for config in module.embedding_bag_configs()
    }


def _topology(section: ShardingSection, device: torch.device, world_size: int, local_world_size: int) -> Topology:
    if section.hbm_gib is not None:
        memory = int(section.hbm_gib * GIB)
    elif device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // local_world_size
    caps = {"hbm_cap": memory} if device.type == "cuda" else {"ddr_cap": memory}
    return Topology(world_size=world_size, local_world_size=local_world_size, compute_device=device.type, **caps)


def _constraints(
    model: nn.Module, section: ShardingSection, world_size: int, local_world_size: int
) -> dict[str, ParameterConstraints]:
    """The allowed types by table; a table too small to be cut by rows stays whole."""
    constraints = {}
    for name, rows in tables(model).items():
        parts = {"row_wise": world_size, "table_row_wise": local_world_size, "grid_shard": local_world_size}
        types = [kind for kind in section.types if every_part_has_rows(rows, parts.get(kind, 1))]
        constraints[name] = ParameterConstraints(
            sharding_types=types or [ShardingType.TABLE_WISE.value],
            compute_kernels=[EmbeddingComputeKernel.FUSED.value, EmbeddingComputeKernel.DENSE.value],
        )
    return constraints


def every_part_has_rows(rows: int, parts: int) -> bool:
    """Whether each of `parts` ranks gets a row when a table is cut into blocks of ceil(rows / parts) rows.

    A rank with an empty block fails, or not, by what lies in memory: with 5 rows on 4 ranks FBGEMM 1.8's row-wise
    Adagrad on CPU claimed "more than 2B rows" in about half of the runs; TorchRec fails at fewer rows than ranks.
    """
    return (parts - 1) * -(-rows // parts) < rows


def _check_complete(model: nn.Module, plan: ShardingPlan) -> None:
    """Every table must be placed: a planner has dropped tables silently before."""
    placed = {name for module_plan in plan.plan.values() for name in module_plan}
    missing = sorted(set(tables(model)) - placed)
    if missing:
        raise UserError(f"the planner left out {len(missing)} tables: {', '.join(missing[:5])}; change sharding.types")

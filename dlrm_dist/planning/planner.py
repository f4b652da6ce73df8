"""TorchRec's planner, fed with a described cluster: which tables go to which ranks, cut in which way.

Runs on one process, without the devices it plans for; the same inputs give the same plan.
"""

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import nn
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.partitioners import GreedyPerfPartitioner
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import (
    CollectiveType,
    GeneralizedCommsBandwidth,
    HardwareConfig,
    KernelConfig,
    PlannerError,
    PlannerErrorType,
    ShardingOption,
    TopologyFactory,
    TrainerConfig,
)
from torchrec.distributed.types import ModuleSharder, ShardingType

from dlrm_dist import __version__, progress
from dlrm_dist.errors import NothingFitsError, UserError
from dlrm_dist.planning import alternatives, estimates, torchrec_plan
from dlrm_dist.planning.cluster import GIB, Cluster
from dlrm_dist.planning.constraints import (
    REPLICATED_FP16,
    Rule,
    check_rules_are_used,
    refuse_managed,
    refuse_precision,
    rule_of,
)
from dlrm_dist.planning.managed_sharder import sharders
from dlrm_dist.planning.plan_file import Inputs, PlanFile, Table, TableEstimate
from dlrm_dist.planning.subject import Subject

_MIN_COLUMNS = 4
"""FBGEMM moves vectors of four numbers: a column shard is a multiple of that wide."""
_DEFAULT_KERNELS = ("fused", "dense")
"""Without constraints: what lies in the device's own memory. TorchRec offers `dense` for data-parallel tables only."""


@dataclass(frozen=True)
class Request:
    """What a plan is asked for, next to the model and the cluster."""

    batch_size: int
    sharding_types: tuple[str, ...]
    rules: tuple[Rule, ...] | None = None
    rules_file: str | None = None
    comm_precision: str = "fp32"
    dense_precision: str = "fp32"


def make_plan(subject: Subject, cluster: Cluster, request: Request) -> PlanFile:
    """Plan the model's tables for a cluster.

    Raises:
        NothingFitsError: no placement fits into memory.
        UserError: the constraints cannot be met.
    """
    for types in [rule.sharding_types for rule in request.rules] if request.rules else [request.sharding_types]:
        refuse_precision(request.comm_precision, types)
    limits = {table.name: _limits(table, subject.optimizer, cluster, request) for table in subject.tables}
    topology = _topology(cluster)
    per_rank_batch_size = -(-request.batch_size // cluster.world_size)
    enumerator = _Enumerator(topology, per_rank_batch_size, limits)
    chosen: list[ShardingOption] = []

    def keep(options: list[ShardingOption]) -> list[ShardingOption]:
        chosen.extend(options)
        return options

    with _quiet_libraries(), progress.bar(f"plan for {cluster.world_size} ranks", "placements") as bar:
        planner = EmbeddingShardingPlanner(
            topology=topology,
            batch_size=per_rank_batch_size,
            enumerator=enumerator,
            partitioner=_Partitioner(_fixed_ranks(subject.tables, request.rules), bar.update),
            storage_reservation=FixedPercentageStorageReservation(percentage=0.0),  # the cluster's memory has it
            constraints=limits,
            stats=[],
            callbacks=[keep],
        )
        try:
            plan = planner.plan(subject.task, sharders(request.comm_precision, hosts=cluster.hosts))
        except PlannerError:  # "insufficient storage" or "strict constraints": no proposal could be packed
            hbm, ddr = cluster.memory_bytes()
            cap = hbm if cluster.device == "cuda" else ddr
            raise NothingFitsError(
                f"no plan fits {cluster.world_size} ranks of {cap / GIB:.1f} GiB for tables each"
            ) from None
    _check_complete(subject.tables, chosen)
    inputs = inputs_of(subject, cluster, request)
    return PlanFile(
        inputs=inputs,
        digest=inputs.digest(),
        modules=torchrec_plan.from_torchrec(plan),
        estimates=_estimates(subject.tables, chosen, enumerator.options, cluster),
    )


def inputs_of(subject: Subject, cluster: Cluster, request: Request) -> Inputs:
    """All that a plan is made from."""
    return Inputs(
        tables=subject.tables,
        dense=subject.dense,
        optimizer=subject.optimizer,
        batch_size=request.batch_size,
        comm_precision=request.comm_precision,
        dense_precision=request.dense_precision,
        sharding_types=request.sharding_types,
        constraints=request.rules,
        constraints_file=request.rules_file,
        cluster=cluster,
        versions=_versions(),
    )


def every_part_has_rows(rows: int, parts: int) -> bool:
    """Whether each of `parts` ranks gets a row when a table is cut into blocks of ceil(rows / parts) rows.

    A rank with an empty block fails, or not, by what lies in memory: with 5 rows on 4 ranks FBGEMM 1.8's row-wise
    Adagrad on CPU claimed "more than 2B rows" in about half of the runs; TorchRec fails at fewer rows than ranks.
    """
    return (parts - 1) * -(-rows // parts) < rows


class _Enumerator(EmbeddingEnumerator):  # type: ignore[misc]
    """All options of all tables, in an order that does not depend on the hash seed, as TorchRec's does."""

    options: list[ShardingOption]

    def enumerate(self, module: nn.Module, sharders: list[ModuleSharder[nn.Module]]) -> list[ShardingOption]:
        """TorchRec's options, sorted within each table."""
        found = super().enumerate(module, sharders)
        order = {name: number for number, name in enumerate(dict.fromkeys(option.name for option in found))}
        found.sort(key=lambda option: (order[option.name], option.sharding_type, option.compute_kernel))
        self.options = copy.copy(found)
        return found

    def _get_num_buckets(self, parameter: str, module: nn.Module) -> int | None:
        """None: tables with managed collisions have as many buckets of ids as there are ranks."""
        return None


class _Partitioner(GreedyPerfPartitioner):  # type: ignore[misc]
    """TorchRec's greedy partitioner, after the tables whose ranks are fixed have been put there."""

    def __init__(self, fixed: dict[str, tuple[int, ...]], tell: Callable[[], Any]) -> None:
        """Take the fixed ranks by table, and who is told of each proposal."""
        super().__init__()
        self._fixed, self._tell = fixed, tell

    def partition(self, proposal: list[ShardingOption], storage_constraint: Topology) -> list[ShardingOption]:
        """A rank for each shard of the proposal."""
        self._tell()
        fixed = [option for option in proposal if option.name in self._fixed]
        if not fixed:
            return super().partition(proposal, storage_constraint)
        topology = copy.deepcopy(storage_constraint)
        for option in fixed:
            ranks = self._fixed[option.name]
            for number, shard in enumerate(option.shards):
                device = topology.devices[ranks[number % len(ranks)]]
                if not shard.storage.fits_in(device.storage):
                    message = f"table {option.name} does not fit on rank {device.rank}, which its constraint names"
                    raise PlannerError(error_type=PlannerErrorType.PARTITION, message=message)
                shard.rank = device.rank
                device.storage -= shard.storage
                device.perf += shard.perf
        super().partition([option for option in proposal if option.name not in self._fixed], topology)
        return proposal


class _Links(GeneralizedCommsBandwidth):  # type: ignore[misc]
    """Bytes a millisecond of a collective's buffer, by the cluster's links.

    An all-to-all's share that leaves the host goes through the device's own link out; the rings of the other
    collectives use the links of all devices of a host at once. What stays on the device costs nothing.
    """

    def __init__(self, cluster: Cluster) -> None:
        efficiency = cluster.value("link_efficiency") * 1e6
        self._intra = cluster.value("intra_host_gb_s") * efficiency
        self._inter = cluster.value("inter_host_gb_s") * efficiency

    @property
    def intra_host_bw(self) -> float:
        """Inside a host."""
        return self._intra

    @property
    def inter_host_bw(self) -> float:
        """Between hosts."""
        return self._inter

    def get_bw(self, local_world_size: int, world_size: int, collective_type: CollectiveType) -> float:
        """Buffer size over this is the time of the collective among `world_size` ranks."""
        if world_size == 1:
            return float("inf")
        local = min(local_world_size, world_size)
        if collective_type == CollectiveType.ALL_TO_ALL:
            inside, outside = (local - 1) / world_size, (world_size - local) / world_size
            return 1 / (inside / self._intra + outside / self._inter)
        ring = self._intra if world_size <= local_world_size else min(self._intra, local * self._inter)
        return ring * world_size / (world_size - 1)


def _topology(cluster: Cluster) -> Topology:
    """The cluster in TorchRec's terms: bytes, bytes a millisecond. Nothing is left to TorchRec's V100-era defaults."""
    hbm, ddr = cluster.memory_bytes()
    lookup = cluster.value("lookup_efficiency") * 1e6
    return TopologyFactory.create_topology(
        trainer_config=TrainerConfig(world_size=cluster.world_size, local_world_size=cluster.devices_per_host),
        hardware_config=HardwareConfig(
            hbm_cap_bytes=hbm,
            ddr_cap_bytes=ddr,
            ssd_cap_bytes=0,
            hbm_mem_bw=cluster.value("hbm_gb_s") * lookup or 1.0,
            ddr_mem_bw=cluster.value("ddr_gb_s") * lookup,
            hbm_to_ddr_mem_bw=cluster.value("host_link_gb_s") * 1e6,
            ssd_mem_bw=1.0,
        ),
        kernel_config=KernelConfig(
            compute_device=cluster.device,
            use_hardware_based_bandwidth=True,  # without it TorchRec 1.8 drops the bandwidths for its own, silently
            bwd_compute_multiplier=cluster.value("update_multiplier"),
            generalized_comms_bandwidths=_Links(cluster),
        ),
    )


def _limits(table: Table, optimizer: str, cluster: Cluster, request: Request) -> ParameterConstraints:
    """The allowed types and kernels of a table, without those that would give a rank no row or too few ranks."""
    rule = rule_of(table.name, request.rules) if request.rules else None
    world_size, local = cluster.world_size, cluster.devices_per_host
    column_parts = max(2, rule.min_ranks or 0, len(rule.ranks or ())) if rule else 2
    columns = max(_MIN_COLUMNS, table.dim // column_parts // _MIN_COLUMNS * _MIN_COLUMNS)
    spread = {
        "table_wise": 1,
        "row_wise": world_size,
        "data_parallel": world_size,
        "column_wise": min(world_size, table.dim // columns),
        "table_row_wise": local,
        "table_column_wise": min(local, table.dim // columns),
        "grid_shard": local,
    }
    row_parts = {"row_wise": world_size, "table_row_wise": local, "grid_shard": local}
    types = [
        kind
        for kind in (rule.sharding_types if rule else request.sharding_types)
        if every_part_has_rows(table.rows, row_parts.get(kind, 1)) and spread[kind] >= ((rule and rule.min_ranks) or 1)
    ]
    if table.managed:
        refuse_managed(table.name, table.rows, world_size, request.sharding_types, request.rules)
        types = [ShardingType.ROW_WISE.value]
    if table.data_type != "fp32" and optimizer != "sgd":
        types = [kind for kind in types if kind != "data_parallel"]
    if world_size == 1 and len(types) > 1:
        types = [kind for kind in types if kind not in row_parts]  # nothing to cut, only exchanges to pay
    if rule and rule.sharding_types == ("data_parallel",) and not types:
        raise UserError(f"constraints: table {table.name} is data_parallel: {REPLICATED_FP16}; allow table_wise")
    if rule and not types:
        raise UserError(
            f"constraints: table {table.name} ({table.rows} x {table.dim}) cannot be "
            f"{' or '.join(rule.sharding_types)} on {cluster.size} ranks (pattern {rule.pattern!r}, min_ranks "
            f"{rule.min_ranks or 1}); allow table_wise or data_parallel, or lower min_ranks"
        )
    if rule and rule.ranks and max(rule.ranks) >= world_size:
        raise UserError(
            f"constraints: table {table.name} is fixed to rank {max(rule.ranks)} (pattern {rule.pattern!r}), but there "
            f"are {world_size} ranks; use 0 to {world_size - 1}"
        )
    ids = [rule.pooling_factor] * len(table.features) if rule and rule.pooling_factor else list(table.ids_per_sample)
    return ParameterConstraints(
        sharding_types=types or [ShardingType.TABLE_WISE.value],
        compute_kernels=list((*rule.compute_kernels, "dense") if rule and rule.compute_kernels else _DEFAULT_KERNELS),
        min_partition=columns,
        pooling_factors=ids,
        feature_names=list(table.features),
    )


def _fixed_ranks(tables: Sequence[Table], rules: tuple[Rule, ...] | None) -> dict[str, tuple[int, ...]]:
    if not rules:
        return {}
    check_rules_are_used([table.name for table in tables], rules)
    chosen = {table.name: rule_of(table.name, rules).ranks for table in tables}
    return {name: ranks for name, ranks in chosen.items() if ranks}


def _estimates(
    tables: Sequence[Table], chosen: list[ShardingOption], options: list[ShardingOption], cluster: Cluster
) -> dict[str, TableEstimate]:
    """The planner's expectations of the chosen options, and of the others, table by table."""
    by_name = {option.name: option for option in chosen}
    shards = {name: estimates.of_shards(option) for name, option in by_name.items()}
    others = alternatives.of_tables(by_name, options, shards, cluster)
    return {table.name: TableEstimate(shards=shards[table.name], alternatives=others[table.name]) for table in tables}


def _check_complete(tables: Sequence[Table], chosen: list[ShardingOption]) -> None:
    """Every table must be placed: a planner has dropped tables silently before."""
    missing = sorted({table.name for table in tables} - {option.name for option in chosen})
    if missing:
        raise UserError(f"the planner left out {len(missing)} tables: {', '.join(missing[:5])}; change sharding.types")


def _versions() -> dict[str, str]:
    found = {"dlrm_dist": __version__}
    for package in ("torch", "torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keeps notices that speak to TorchRec's developers off the console."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.disable(logging.NOTSET)

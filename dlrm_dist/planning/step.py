"""The predicted time of a training step: the planner's figures for the embeddings, and all that it does not know.

The planner rates lookups, updates and exchanges. Added here are the dense layers (operations over the arithmetic's
speed), their all-reduce (a ring), their optimizer and the input (bytes over bandwidths), the start-up time of each
collective, and a step's fixed overhead; all constants are the cluster's. Two bounds are given: every part after another
(serial), and arithmetic, links and input each at its own pace, the slowest deciding (overlapped).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from dlrm_dist.planning import check, exchange
from dlrm_dist.planning.plan_file import PlanFile, ShardEstimate

DENSE_OPTIMIZER_PASSES = 5
"""Times a parameter's bytes are moved by a dense update: gradient, moment and weight in, moment and weight out."""
_BUCKET_BYTES = 25e6
"""DDP reduces gradients in buckets of that size."""

PARTS = (
    "input",
    "id_exchange",
    "lookup",
    "forward_exchange",
    "dense_forward",
    "dense_backward",
    "backward_exchange",
    "update",
    "all_reduce",
    "dense_optimizer",
    "latency",
    "overhead",
)
_ARITHMETIC = ("lookup", "dense_forward", "dense_backward", "update", "dense_optimizer", "overhead")
_LINKS = ("id_exchange", "forward_exchange", "backward_exchange", "all_reduce", "latency")


@dataclass(frozen=True)
class RankLoad:
    """One rank's share: bytes of memory, milliseconds of the embedding work."""

    rank: int
    hbm: float
    ddr: float
    milliseconds: dict[str, float]

    @property
    def total(self) -> float:
        """Milliseconds of all its embedding work."""
        return sum(self.milliseconds.values())


@dataclass(frozen=True)
class Step:
    """A step's predicted milliseconds by part, at the rank that takes longest."""

    parts: dict[str, float]
    slowest_rank: int
    imbalance: float
    """Slowest rank's embedding time over the mean."""
    batch_size: int

    @property
    def serial(self) -> float:
        """Milliseconds with every part after another."""
        return sum(self.parts.values())

    @property
    def overlapped(self) -> float:
        """Milliseconds with arithmetic, links and input at the same time."""
        return max(self.resources().values())

    def resources(self) -> dict[str, float]:
        """Milliseconds by what is busy."""
        return {
            "compute": sum(self.parts[part] for part in _ARITHMETIC),
            "communication": sum(self.parts[part] for part in _LINKS),
            "input": self.parts["input"],
        }

    @property
    def bound(self) -> str:
        """What the overlapped step waits for."""
        resources = self.resources()
        return max(resources, key=lambda name: resources[name])

    def samples_per_s(self) -> tuple[float, float]:
        """Of the serial and of the overlapped step."""
        return self.batch_size / self.serial * 1e3, self.batch_size / self.overlapped * 1e3


def embedding_parts(shards: Iterable[ShardEstimate]) -> dict[str, float]:
    """Milliseconds of some shards, by part."""
    total = dict.fromkeys(("id_exchange", "lookup", "forward_exchange", "backward_exchange", "update"), 0.0)
    for shard in shards:
        for part in total:
            total[part] += getattr(shard, part)
    return total


def rank_loads(plan: PlanFile) -> list[RankLoad]:
    """Each rank's load, in order."""
    by_rank: list[list[ShardEstimate]] = [[] for _ in range(plan.world_size)]
    for estimate in plan.estimates.values():
        for shard in estimate.shards:
            if shard.rank < plan.world_size:
                by_rank[shard.rank].append(shard)
    hbm, ddr = check.hbm_use(plan), check.ddr_use(plan)
    return [RankLoad(rank, hbm[rank], ddr[rank], embedding_parts(shards)) for rank, shards in enumerate(by_rank)]


def predict(plan: PlanFile) -> Step:
    """A step by this plan."""
    loads = rank_loads(plan)
    slowest = max(loads, key=lambda load: load.total)
    mean = sum(load.total for load in loads) / len(loads)
    inputs, cluster = plan.inputs, plan.inputs.cluster
    rows = -(-inputs.batch_size // plan.world_size)
    dense = inputs.dense
    flop_per_ms = _tflop_s(plan) * cluster.value("dense_efficiency") * 1e9
    memory = cluster.value("hbm_gb_s" if cluster.device == "cuda" else "ddr_gb_s") * 1e6
    read = dense.input_bytes_per_sample * rows
    copied = read / (cluster.value("host_link_gb_s") * 1e6) if cluster.device == "cuda" else 0.0
    parts = {
        **slowest.milliseconds,
        "input": read / (cluster.value("input_gb_s") * 1e6) + copied,
        "dense_forward": dense.forward_flop_per_sample * rows / flop_per_ms,
        "dense_backward": dense.backward_flop_per_sample * rows / flop_per_ms,
        "all_reduce": _reduce_milliseconds(plan, dense.parameter_bytes),
        "dense_optimizer": dense.parameter_bytes * DENSE_OPTIMIZER_PASSES / memory,
        "latency": _latency_milliseconds(plan),
        "overhead": cluster.value("step_overhead_ms"),
    }
    return Step(
        parts={part: parts[part] for part in PARTS},
        slowest_rank=slowest.rank,
        imbalance=slowest.total / mean if mean else 1.0,
        batch_size=inputs.batch_size,
    )


def _tflop_s(plan: PlanFile) -> float:
    """Peak of the dense layers' arithmetic; tensor cores run TF32 at half the rate of bf16."""
    cluster, precision = plan.inputs.cluster, plan.inputs.dense_precision
    if precision == "fp32":
        return cluster.value("fp32_tflop_s")
    return cluster.value("bf16_tflop_s") / (2 if precision == "tf32" else 1)


def _reduce_milliseconds(plan: PlanFile, size: float) -> float:
    """An all-reduce of `size` bytes of fp32 over all ranks.

    Each rank sends 2 (W - 1) / W of it, and a host's devices share its links; by hosts: the same inside a host, an L-th
    of it in bf16 between hosts, and what the others of the host have brought.
    """
    cluster, world_size = plan.inputs.cluster, plan.world_size
    link = cluster.value("intra_host_gb_s")
    if cluster.hosts > 1 and exchange.split(plan.inputs.comm_precision)[1]:
        local, hosts = cluster.devices_per_host, cluster.hosts
        inside = (2 * (local - 1) + (local - 1) / 2) / local * size / link
        across = (hosts - 1) / hosts * size / local / cluster.value("inter_host_gb_s")
        return (inside + across) / (cluster.value("link_efficiency") * 1e6)
    if cluster.hosts > 1:
        link = min(link, cluster.devices_per_host * cluster.value("inter_host_gb_s"))
    return 2 * (world_size - 1) / world_size * size / (link * cluster.value("link_efficiency") * 1e6)


def _latency_milliseconds(plan: PlanFile) -> float:
    """Start-up of a step's collectives.

    Four for each kind of sharding that exchanges (ids and their lengths, forward, backward), two more where a second
    level follows, the buckets of the all-reduce, and the sums of batch normalisation.
    """
    cluster = plan.inputs.cluster
    if plan.world_size == 1:
        return 0.0
    kinds = {sharding.sharding_type for _, sharding in plan.placed()}
    one_level = bool(kinds & {"table_wise", "column_wise", "table_column_wise"}) + ("row_wise" in kinds)
    two_level = bool(kinds & {"table_row_wise", "grid_shard"})
    buckets = -(-plan.inputs.dense.parameter_bytes // int(_BUCKET_BYTES)) + ("data_parallel" in kinds)
    latency = cluster.value("inter_host_latency_us" if cluster.hosts > 1 else "intra_host_latency_us")
    return (4 * one_level + 6 * two_level + buckets + plan.inputs.dense.collectives) * latency / 1e3

"""A plan for a config's model; when nothing fits, what stands in the way and the nearest changes that would help."""

import dataclasses
from collections.abc import Iterator

from dlrm_dist.errors import NothingFitsError, UserError
from dlrm_dist.models.shape import ModelShape
from dlrm_dist.planning.cluster import GIB, Cluster
from dlrm_dist.planning.constraints import Rule
from dlrm_dist.planning.plan_file import PlanFile
from dlrm_dist.planning.planner import Request, make_plan
from dlrm_dist.planning.subject import make_subject
from dlrm_dist.planning.tables import model_tables
from dlrm_dist.sections import ModelSection, OptimizerSection

_MOST_RANKS_TRIED = 128
"""Beyond, trying a size takes the planner longer than a user wants to wait for an error."""


def plan_model(
    model: ModelSection, optimizer: OptimizerSection, shape: ModelShape, cluster: Cluster, request: Request
) -> PlanFile:
    """The plan.

    Raises:
        NothingFitsError: no plan fits; the message names tables, missing GiB, and changes that were tried and fit.
        UserError: the constraints cannot be met.
    """
    try:
        return make_plan(make_subject(model, optimizer, shape), cluster, request)
    except NothingFitsError as error:
        missing = _missing(model, optimizer, shape, cluster)
        advice = _advice(model, optimizer, shape, cluster, request)
        raise NothingFitsError(f"{error}: {missing}; {advice}") from None


def _missing(model: ModelSection, optimizer: OptimizerSection, shape: ModelShape, cluster: Cluster) -> str:
    """Which tables need how much, and how much is missing."""
    hbm, ddr = cluster.memory_bytes()
    cap = hbm if cluster.device == "cuda" else ddr
    sizes = {table.name: table.rows * table.bytes_per_row for table in model_tables(model, optimizer, shape)}
    total, room = sum(sizes.values()), cap * cluster.world_size
    largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
    named = ", ".join(f"{name} {sizes[name] / GIB:.1f} GiB" for name in largest)
    need = f"weights and optimizer state take {total / GIB:.1f} GiB (the largest: {named})"
    if total > room:
        return f"{need}, {(total - room) / GIB:.1f} GiB more than all ranks have"
    whole = [name for name in sizes if sizes[name] > cap]
    if whole:
        over = ", ".join(f"{name} by {(sizes[name] - cap) / GIB:.1f} GiB" for name in whole[:5])
        return f"{need}; larger than a rank are {over}, and the allowed sharding types do not cut them small enough"
    return f"{need}; with inputs, outputs and the tables' uneven sizes they cannot be packed"


def _advice(
    model: ModelSection, optimizer: OptimizerSection, shape: ModelShape, cluster: Cluster, request: Request
) -> str:
    """The changes that the planner was asked about, and that fit."""
    found: list[str] = []
    for advice, attempt in _attempts(model, optimizer, cluster, request):
        try:
            make_plan(make_subject(attempt[0], attempt[1], shape), attempt[2], attempt[3])
        except UserError:
            continue
        kind = advice.split(" ")[0]
        if kind not in {each.split(" ")[0] for each in found}:
            found.append(advice)
    return f"what would fit: {'; or '.join(found)}" if found else "no single change of ranks, dim, kernel or types fits"


def _attempts(
    model: ModelSection, optimizer: OptimizerSection, cluster: Cluster, request: Request
) -> Iterator[tuple[str, tuple[ModelSection, OptimizerSection, Cluster, Request]]]:
    """Changes, the smaller ones of a kind first; the first word is the kind."""
    types = tuple(dict.fromkeys((*request.sharding_types, "row_wise", "column_wise")))
    if request.rules is None and types != request.sharding_types:
        yield f"types {list(types)} (sharding.types)", (model, optimizer, cluster, _with(request, types, None))
    if cluster.device == "cuda" and request.rules is None:
        kernels = ("fused", "fused_uvm_caching")
        yield (
            f"kernel {kernels[1]}, weights in host memory (compute_kernels in a constraints file)",
            (model, optimizer, cluster, _with(request, request.sharding_types, kernels)),
        )
    if model.table_precision == "fp32":
        half = model.model_copy(update={"table_precision": "fp16"})
        yield "precision fp16 of the weights (model.table_precision)", (half, optimizer, cluster, request)
    if optimizer.sparse not in ("sgd", "rowwise_adagrad"):
        small = optimizer.model_copy(update={"sparse": "rowwise_adagrad"})
        yield "optimizer rowwise_adagrad, a number a row (optimizer.sparse)", (model, small, cluster, request)
    dim = 0 if model.embedding_dims else model.embedding_dim
    while (dim := dim // 2) >= 4:
        narrow = model.model_copy(update={"embedding_dim": dim, "bottom_mlp": (*model.bottom_mlp[:-1], dim)})
        yield f"dim {dim} (model.embedding_dim)", (narrow, optimizer, cluster, request)
    for larger in _larger(cluster):
        yield f"ranks {larger.world_size} (cluster {larger.name}:{larger.size})", (model, optimizer, larger, request)


def _larger(cluster: Cluster) -> Iterator[Cluster]:
    devices, hosts = cluster.devices_per_host, cluster.hosts
    while devices < 8:
        devices = min(8, devices * 2)
        yield cluster.resized(hosts, devices)
    while hosts * devices * 2 <= _MOST_RANKS_TRIED:
        hosts *= 2
        yield cluster.resized(hosts, devices)


def _with(request: Request, types: tuple[str, ...], kernels: tuple[str, ...] | None) -> Request:
    rules = (Rule(pattern="*", sharding_types=types, compute_kernels=kernels),) if kernels else None  # type: ignore[arg-type]
    return dataclasses.replace(request, sharding_types=types, rules=rules, rules_file=None)

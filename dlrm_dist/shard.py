"""The one place where parallelism is applied: fused optimizer, DistributedModelParallel, combined optimizer."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.nn.parallel import DistributedDataParallel
from torchrec.distributed import embeddingbag
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.model_parallel import DefaultDataParallelWrapper, DistributedModelParallel
from torchrec.distributed.types import ParameterSharding, ShardingEnv, ShardingPlan, ShardingType
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from dlrm_dist import place
from dlrm_dist.between_hosts import HostSum
from dlrm_dist.cpu_adagrad import avoid_slow_kernel, fused_tables
from dlrm_dist.models.batch_norm import BatchNorm
from dlrm_dist.optim import Optimizers
from dlrm_dist.planning import exchange
from dlrm_dist.planning.managed_sharder import sharders

_INIT_BLOCK_ROWS = 1 << 16


_FIXED_BUCKETS = {"static_graph": False, "find_unused_parameters": True}
"""DDP sorts its buckets anew after the first step, and 3 ranks or more then sum in another order: a resumed run would
differ in the last bits. Looking for unused parameters keeps it from that."""


class _ReplicatedTables(DistributedDataParallel):
    """TorchRec wraps replicated tables by itself, and offers no option."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, **_FIXED_BUCKETS})


@dataclass(frozen=True)
class ShardedTask:
    """A model whose tables are sharded and whose rest is replicated, with the optimizer of its dense part.

    The tables' own optimizer runs inside the backward; `optimizer.step()` updates what is replicated.
    """

    model: DistributedModelParallel
    optimizer: CombinedOptimizer
    learning_rates: tuple[float, ...]
    """Full learning rate of each of the optimizer's parameter groups."""
    full_rates: dict[str, float]
    """The same by what they are for, `sparse` (the tables) and `dense`: a rank may hold no table."""
    has_caches: bool = False
    """Whether tables lie in host memory behind a cache on the GPU."""

    def scale_learning_rates(self, factor: float) -> None:
        """Set every learning rate, the fused ones too, to `factor` times its full value from the next step on."""
        for group, rate in zip(self.optimizer.param_groups, self.learning_rates, strict=True):
            group["lr"] = rate * factor

    def rates_at(self, factor: float) -> dict[str, float]:
        """The learning rates when they are scaled so."""
        return {f"lr_{kind}": rate * factor for kind, rate in self.full_rates.items()}


class _ClippedOptimizer(CombinedOptimizer):  # type: ignore[misc]
    """Scales the replicated parameters' gradient down to a norm before the step; the fused tables are updated by then.

    DDP has averaged the gradient, so the norm is the same on all ranks.
    """

    def __init__(self, optimizers: list[KeyedOptimizer], parameters: list[Tensor], max_norm: float) -> None:
        super().__init__(optimizers)
        self._parameters, self._max_norm = parameters, max_norm

    def step(self, closure: Any = None) -> None:
        """Clip, and update."""
        nn.utils.clip_grad_norm_(self._parameters, self._max_norm)
        super().step(closure)


def shard(
    task: nn.Module,
    plan: ShardingPlan,
    device: torch.device,
    optimizers: Optimizers,
    seed: int,
    comm_precision: str = "fp32",
    initialise: bool = True,
) -> ShardedTask:
    """Shard `task`, whose tables are on the meta device, by `plan`, and initialise the tables. Collective.

    Args:
        task: the module to train.
        plan: a place for each table.
        device: this rank's device.
        optimizers: of the tables and of all else.
        seed: of the tables' initial weights, which depend on neither the plan nor the world size.
        comm_precision: of embeddings and their gradients between ranks, and with `_between_hosts` of the gradients
            of replicated weights too.
        initialise: False where a checkpoint's weights follow: until then tables hold what the kernels left there.
    """
    replicated = _tables_of(plan, lambda each: each.sharding_type == ShardingType.DATA_PARALLEL.value)
    cached = _tables_of(
        plan, lambda sharding: sharding.compute_kernel == EmbeddingComputeKernel.FUSED_UVM_CACHING.value
    )
    configs = _table_configs(task)
    hosts = dist.get_world_size() // place.local_world_size()
    for name, parameter in _table_parameters(task):
        if name not in replicated:  # TorchRec's data-parallel tables have no fused kernel
            optimizer_class, arguments = optimizers.fused()
            apply_optimizer_in_backward(optimizer_class, [parameter], arguments)
    with patch.object(embeddingbag, "DistributedDataParallel", _ReplicatedTables):
        model = DistributedModelParallel(
            module=task,
            env=ShardingEnv.from_process_group(dist.group.WORLD),
            device=device,
            plan=plan,
            sharders=sharders(comm_precision, bool(cached), hosts),
            init_data_parallel=dist.get_world_size() > 1,  # DDP of one rank: about 3 ms a step of 65 by the profiler
            data_parallel_wrapper=DefaultDataParallelWrapper(**_FIXED_BUCKETS),
        )
    if exchange.split(comm_precision)[1] and hosts > 1:
        _reduce_by_host(model)
    avoid_slow_kernel(fused_tables(model))
    _normalise_over_ranks(model)
    if initialise:
        _init_tables(model, configs, seed)
    optimizer = _combine(model, optimizers)
    rates = tuple(group["lr"] for group in optimizer.param_groups)
    full_rates = {"sparse": optimizers.fused()[1]["lr"], "dense": optimizers.dense()[1]["lr"]}
    return ShardedTask(model, optimizer, rates, full_rates, bool(cached))


def _reduce_by_host(model: nn.Module) -> None:
    """Have gradients of replicated weights averaged host by host. Collective."""
    sums = HostSum(place.local_world_size())
    for module in model.modules():
        if isinstance(module, DistributedDataParallel):
            module.register_comm_hook(sums, HostSum.average)


def _normalise_over_ranks(model: nn.Module) -> None:
    """Have batch normalisation take its statistics from the global batch: every rank has the same ones."""
    if dist.get_world_size() > 1:
        for module in model.modules():
            if isinstance(module, BatchNorm):
                module.sum_over_ranks = _summed


def _summed(values: Tensor) -> Tensor:
    """The sum over ranks, in place. Collective."""
    dist.all_reduce(values)
    return values


def _combine(model: DistributedModelParallel, optimizers: Optimizers) -> CombinedOptimizer:
    """The fused optimizer, that of replicated tables, and the dense one."""
    parameters = dict(in_backward_optimizer_filter(model.named_parameters()))
    is_table = {name: "embedding_bags." in name for name in parameters}
    combined = [model.fused_optimizer]
    for wanted, make in ((True, optimizers.replicated), (False, optimizers.dense)):
        chosen = {name: p for name, p in parameters.items() if is_table[name] is wanted}
        if chosen:
            optimizer_class, arguments = make()
            wrapper = KeyedOptimizerWrapper(chosen, lambda p, c=optimizer_class, a=arguments: c(p, **a))
            _make_state(wrapper)
            combined.append(wrapper)
    if optimizers.section.clip_norm is None:
        return CombinedOptimizer(combined)
    return _ClippedOptimizer(combined, list(parameters.values()), optimizers.section.clip_norm)


def _make_state(optimizer: KeyedOptimizerWrapper) -> None:
    """Have the state that Adam makes in its first step, as it is before it: what a checkpoint is loaded into."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.init_state()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for values in optimizer.state.values():
        for value in values.values():
            value.zero_()
    optimizer.zero_grad()


def _tables_of(plan: ShardingPlan, is_one: Callable[[ParameterSharding], bool]) -> set[str]:
    return {name for module in plan.plan.values() for name, sharding in module.items() if is_one(sharding)}


def _table_configs(task: nn.Module) -> dict[str, EmbeddingBagConfig]:
    return {
        config.name: config
        for module in task.modules()
        if isinstance(module, EmbeddingBagCollection)
        for config in module.embedding_bag_configs()
    }


def _table_parameters(task: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for module in task.modules():
        if isinstance(module, EmbeddingBagCollection):
            for name, bag in module.embedding_bags.items():
                yield name, bag.weight


def _init_tables(model: nn.Module, configs: dict[str, EmbeddingBagConfig], seed: int) -> None:
    """Fill each rank's shards by its table's rule with values that depend on (seed, table, row, column) alone."""
    numbers = {name: number for number, name in enumerate(configs)}
    for key, value in model.state_dict().items():
        name = key.split(".")[-2]
        if name not in configs or not key.endswith(".weight"):
            continue
        for (row, column), local in local_parts(value):
            _fill(local, row, column, configs[name], seed, numbers[name])


def local_parts(value: Tensor | ShardedTensor) -> list[tuple[tuple[int, int], Tensor]]:
    """This rank's parts of a table (or of a number a row), with the row and the column at which each begins."""
    if isinstance(value, ShardedTensor):
        return [
            ((offsets[0], offsets[1] if len(offsets) > 1 else 0), shard.tensor)
            for shard in value.local_shards()
            for offsets in [shard.metadata.shard_offsets]
        ]
    return [((0, 0), value)]


def _fill(local: Tensor, first_row: int, column: int, config: EmbeddingBagConfig, seed: int, number: int) -> None:
    """Whole blocks of rows are drawn, each from a generator of its own, and the part that lies here is kept."""
    assert config.init_fn is not None
    rows, columns = local.shape
    for block in range(first_row // _INIT_BLOCK_ROWS, -(-(first_row + rows) // _INIT_BLOCK_ROWS)):
        start = block * _INIT_BLOCK_ROWS
        height = min(_INIT_BLOCK_ROWS, config.num_embeddings - start)
        generator = torch.Generator().manual_seed(_seed(seed, number, block))
        values = torch.empty(height, config.embedding_dim)
        config.init_fn(values, generator=generator)
        begin, end = max(start, first_row), min(start + height, first_row + rows)
        part = values[begin - start : end - start, column : column + columns]
        with torch.no_grad():
            local[begin - first_row : end - first_row].copy_(part)


def _seed(*numbers: int) -> int:
    """A well-mixed seed of several numbers, the same on every machine."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)

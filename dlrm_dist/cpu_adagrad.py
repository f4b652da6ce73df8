"""A way round a slow kernel of FBGEMM: fused row-wise Adagrad on the CPU, over fp32 tables of one feature each."""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
from torch import Tensor, nn
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection

_PER_FEATURE = ("weights_offsets", "weights_placements", "momentum1_offsets", "momentum1_placements", "rows_per_table")
_BREAK_EVEN = 128
"""Threads times columns. The slow kernel spreads over threads and the other does not, and the more columns, the less a
fixed price a row matters: on one thread the other is 5 times as fast at 16 columns, 2.4 at 64 and 1.3 at 128."""


def fused_tables(model: nn.Module) -> Iterator[SplitTableBatchedEmbeddingBagsCodegen]:
    """FBGEMM's modules in a sharded model: TorchRec keeps them in lists, which `modules()` does not enter."""
    collections = [each for each in model.modules() if isinstance(each, ShardedEmbeddingBagCollection)]
    for lookup in chain.from_iterable(each._lookups for each in collections):
        yield from (each for each in lookup.modules() if isinstance(each, SplitTableBatchedEmbeddingBagsCodegen))


def avoid_slow_kernel(modules: Iterable[SplitTableBatchedEmbeddingBagsCodegen]) -> None:
    """Have tables updated by FBGEMM's plain loop where that is faster than its generated kernel.

    The generated kernel (fbgemm's GenSparseAdagrad) mixes SSE with AVX instructions, and some processors charge each
    change between them: 430 ns a row on a Sapphire Rapids, where the same instructions in their AVX form take 5.
    FBGEMM takes its loop, as it does for all other optimizers, when several features share a table. So each table gets
    a second feature here, with empty bags and no columns: weights, moments and output keep their places and shapes.

    The generated kernel also leaves out weight decay, silently, and the loop does not: with it, all tables change.
    """
    for module in modules:
        if _is_to_change(module):
            _add_empty_features(module)


def _is_to_change(tables: Any) -> bool:
    unshared = len(set(tables.feature_table_map)) == len(tables.feature_table_map)
    kernel = (tables.use_cpu, tables.optimizer, tables.weights_precision)
    generated = unshared and kernel == (True, EmbOptimType.EXACT_ROWWISE_ADAGRAD, SparseType.FP32)
    decays = tables.optimizer_args.weight_decay > 0
    return generated and (decays or torch.get_num_threads() * tables.max_D <= _BREAK_EVEN)


def _add_empty_features(tables: Any) -> None:
    for name in _PER_FEATURE:
        setattr(tables, name, getattr(tables, name).repeat_interleave(2))
    rows, columns = tables.hash_size_cumsum, tables.D_offsets
    tables.hash_size_cumsum = torch.cat([rows[:-1].repeat_interleave(2), rows[-1:]])  # equal: the same table
    tables.D_offsets = torch.cat([columns[:1], columns[1:].repeat_interleave(2)])  # equal: no columns
    tables.register_forward_pre_hook(partial(_with_empty_bags, len(tables.feature_table_map)), with_kwargs=True)


def _with_empty_bags(
    features: int, _module: nn.Module, args: tuple[Any, ...], arguments: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The bags of each feature, then as many empty ones that begin where those end."""
    offsets: Tensor = arguments["offsets"]
    begins = offsets[:-1].view(features, -1)
    ends = offsets[1:].view(features, -1)[:, -1:].expand_as(begins)
    doubled = torch.cat([torch.stack([begins, ends], 1).flatten(), offsets[-1:]])
    return args, {**arguments, "offsets": doubled}

"""Whole tensors from every rank's shards."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor


def whole(values: dict[str, Tensor | ShardedTensor]) -> dict[str, Tensor]:
    """Whole tensors put together from every rank's shards, on global rank 0 (elsewhere nothing). Collective.

    A rank may not know of another's tables: its own list need not be complete.
    """
    pieces = [(key, *piece) for key, value in values.items() for piece in _pieces(value)]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.gather_object(pieces, gathered if dist.get_rank() == 0 else None)
    out: dict[str, Tensor] = {}
    for key, size, offsets, tensor in (piece for rank in gathered for piece in rank or []):
        target = out.setdefault(key, torch.full(size, torch.nan))
        target[tuple(slice(o, o + n) for o, n in zip(offsets, tensor.shape, strict=True))] = tensor
    return out


def _pieces(value: Tensor | ShardedTensor) -> list[tuple[list[int], list[int], Tensor]]:
    """(Size of the whole, offsets, this rank's part) of each part here."""
    if isinstance(value, ShardedTensor):
        size = list(value.size())
        return [(size, list(shard.metadata.shard_offsets), shard.tensor) for shard in value.local_shards()]
    return [(list(value.size()), [0] * value.dim(), value.detach())]

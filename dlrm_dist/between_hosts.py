"""Gradients of replicated weights over several hosts: summed in fp32 inside a host, in bf16 between hosts.

Of L ranks on a host each carries an L-th of the sum to the other hosts: over the link between 2 x 2 ranks goes a third
of what a ring over all ranks sends there in fp32.
"""

import torch
import torch.distributed as dist
from torch import Tensor


class HostSum:
    """Sums over all ranks, host by host. Collective, in the same order on all ranks.

    Args:
        local_world_size: ranks of each host, whose global ranks are consecutive.
    """

    def __init__(self, local_world_size: int) -> None:
        rank, world_size = dist.get_rank(), dist.get_world_size()
        self._local, self._parts = rank % local_world_size, local_world_size
        hosts = [list(range(first, first + local_world_size)) for first in range(0, world_size, local_world_size)]
        peers = [list(range(local, world_size, local_world_size)) for local in range(local_world_size)]
        self._inside = [dist.new_group(ranks) for ranks in hosts][rank // local_world_size]
        self._across = [dist.new_group(ranks) for ranks in peers][self._local]

    def sum(self, values: Tensor) -> None:
        """Sum values [n] of fp32 over all ranks, in place."""
        dist.all_reduce(values, group=self._inside)
        each = -(-len(values) // self._parts)
        padded = values.new_zeros(each * self._parts, dtype=torch.bfloat16)
        padded[: len(values)] = values
        mine = padded[each * self._local : each * (self._local + 1)].clone()
        dist.all_reduce(mine, group=self._across)
        dist.all_gather(list(padded.split(each)), mine, group=self._inside)
        values.copy_(padded[: len(values)])

    def average(self, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        """A communication hook for DDP."""
        values = bucket.buffer()
        values /= dist.get_world_size()
        self.sum(values)
        done: torch.futures.Future[Tensor] = torch.futures.Future(devices=[values.device] if values.is_cuda else None)
        done.set_result(values)
        return done

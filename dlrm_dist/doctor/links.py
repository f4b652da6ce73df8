"""Latency and bandwidth of all-reduce and all-to-all by size of message: inside each host, and between the hosts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from dlrm_dist.doctor.timing import steady_seconds
from dlrm_dist.runtime import Session

INSIDE, BETWEEN, ALL = "inside a host", "between hosts", "all ranks"
COLLECTIVES = ("all-to-all", "all-reduce")
_SIZES = (8, 4 << 10, 64 << 10, 1 << 20, 16 << 20, 64 << 20)
_LARGE = 1 << 20
"""Bytes from which on a message is measured for longer, and tells the rate of a link."""
_LONGEST_CALL = 2.0
"""Seconds that a call may be expected to take; larger messages are left out then."""


@dataclass(frozen=True)
class Scope:
    """Groups of ranks that talk at the same time, each rank in one of them."""

    name: str
    group: dist.ProcessGroup
    ranks: int
    """Of a group."""


@dataclass(frozen=True)
class Line:
    """A collective with messages of one size."""

    scope: str
    collective: str
    bytes: int
    """That a rank holds."""
    seconds: float
    ranks: int
    """Of a group."""

    @property
    def gb_s(self) -> float:
        """What a rank sends at least to the others of its group, as nccl-tests' bus bandwidth."""
        return self.bytes * bus_share(self.collective, self.ranks) / self.seconds / 1e9


def bus_share(collective: str, ranks: int) -> float:
    """What a rank sends at least, over the bytes that it holds."""
    return (ranks - 1) / ranks * (2 if collective == "all-reduce" else 1)


def scopes(here: Session) -> list[Scope]:
    """A group a host; one of the hosts' first ranks, one of their second ones, and so on; all ranks. Collective.

    The second kind sends over the links between hosts alone, all devices of a host at once.
    """
    local, hosts = here.local_world_size, here.world_size // here.local_world_size
    found = []
    if local > 1:
        blocks = [list(range(host * local, (host + 1) * local)) for host in range(hosts)]
        found.append(Scope(INSIDE, _own_group(blocks, here), local))
    if hosts > 1:
        found.append(
            Scope(BETWEEN, _own_group([[*range(n, here.world_size, local)] for n in range(local)], here), hosts)
        )
    if len(found) > 1:
        found.append(Scope(ALL, _own_group([list(range(here.world_size))], here), here.world_size))
    return found


def measured(scope: Scope, collective: str, here: Session, lasting: float) -> list[Line]:
    """A line for each size, smallest first, up to the one that would take too long. Collective."""
    lines: list[Line] = []
    for size in _SIZES:
        if lines and lines[-1].seconds * size / lines[-1].bytes > _LONGEST_CALL and lines[-1].bytes > _SIZES[1]:
            break
        elements = max(1, size // 4 // scope.ranks) * scope.ranks
        work = _operation(collective, elements, scope.group, here.device)
        seconds = steady_seconds(work, lasting if size >= _LARGE else lasting / 5, here)
        lines.append(Line(scope.name, collective, elements * 4, seconds, scope.ranks))
    return lines


def rate(lines: Sequence[Line], scope: str) -> float | None:
    """GB/s that a rank sends; None if that was not measured.

    Inside a host that of the largest all-to-all: smaller messages stay in the processor's caches. Between hosts the
    best of both collectives with messages that take time: no steady stream of them is faster than the link, and what
    else the hosts do makes single ones slower (0.157 and 0.192 Gbit/s were measured on one link of 0.2).
    """
    found = [line for line in lines if line.scope == scope]
    if not found:
        return None
    if scope != BETWEEN:
        return [line for line in found if line.collective == "all-to-all"][-1].gb_s
    largest = max(line.bytes for line in found)  # of a link too slow for large messages, in either collective
    large = [line for line in found if line.bytes >= min(_LARGE, largest)]
    return max(line.gb_s for line in large)


def latency(lines: Sequence[Line], scope: str, collective: str = "all-to-all") -> float | None:
    """Seconds of the smallest messages; None if that was not measured."""
    found = [line for line in lines if (line.scope, line.collective) == (scope, collective)]
    return found[0].seconds if found else None


def _operation(collective: str, elements: int, group: dist.ProcessGroup, device: torch.device) -> Callable[[], Any]:
    held = torch.zeros(elements, device=device).fill_(0)  # zeros, whose sums do not overflow, in pages that are there
    if collective == "all-reduce":
        return lambda: dist.all_reduce(held, group=group)
    received = held.clone()
    return lambda: dist.all_to_all_single(received, held, group=group)


def _own_group(groups: list[list[int]], here: Session) -> dist.ProcessGroup:
    """Every rank makes all groups, as PyTorch wants; gives this rank's."""
    made = [dist.new_group(ranks, timeout=here.timeout) for ranks in groups]
    return next(group for ranks, group in zip(groups, made, strict=True) if here.global_rank in ranks)

"""How far the hosts' clocks are apart: round trips between global rank 0 and the first rank of each other host."""

import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

from dlrm_dist.runtime import Session

_ROUNDS = 30


@dataclass(frozen=True)
class Skew:
    """Of the clock of a rank's host."""

    rank: int
    seconds: float
    """Ahead of global rank 0's."""
    uncertainty: float
    """Half of the shortest round trip: the true skew is that much more or less at most."""


def skews(here: Session) -> list[Skew]:
    """Of each host but that of global rank 0, on all ranks. Collective."""
    found = []
    for rank in range(here.local_world_size, here.world_size, here.local_world_size):
        if here.is_main:
            found.append(_asked(rank, here.control))
        elif here.global_rank == rank:
            _answer(here.control)
    return here.gather(found)[0]


def _asked(rank: int, group: dist.ProcessGroup) -> Skew:
    """The best of several round trips: the other read its clock somewhere between the asking and the answer."""
    message = torch.zeros(1, dtype=torch.int64)
    trips = []
    for _ in range(_ROUNDS):
        sent = time.time_ns()
        dist.send(message, rank, group=group)
        dist.recv(message, rank, group=group)
        received = time.time_ns()
        trips.append((received - sent, int(message) - (sent + received) / 2))
    shortest, ahead = min(trips)
    return Skew(rank, ahead / 1e9, shortest / 2e9)


def _answer(group: dist.ProcessGroup) -> None:
    message = torch.zeros(1, dtype=torch.int64)
    for _ in range(_ROUNDS):
        dist.recv(message, 0, group=group)
        dist.send(torch.tensor([time.time_ns()]), 0, group=group)

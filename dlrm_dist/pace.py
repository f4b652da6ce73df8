"""Which rank is slower than the others: each rank's step time without what it waits for others.

Collectives make all ranks as slow as the slowest, so the time of a step is the same on all; their own work is not.
"""

import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from dlrm_dist.runtime import Session
from dlrm_dist.waiting import Waiting

SLOW = 1.5
"""A rank that needs so many times the median of the others is slow..."""
TIMES = 3
"""...and a straggler when it was so so many times on end, each over..."""
STEPS = 10
"""...so many steps at least: four ranks on two busy cores were slow by chance for 15 steps in turn."""


class Pace:
    """This rank's own time in the steps since the last report, and how long which rank has been the slow one."""

    def __init__(self, here: Session, waiting: Waiting) -> None:
        self._here, self._waiting = here, waiting
        self._seconds, self._steps = 0.0, 0
        self._slow: dict[int, int] = {}
        self._hosts: list[str] = []

    @contextmanager
    def step(self) -> Iterator[None]:
        """Count what is inside as a step."""
        started, waited = time.perf_counter(), self._waiting.seconds
        yield
        self._seconds += time.perf_counter() - started - (self._waiting.seconds - waited)
        self._steps += 1

    def report(self) -> dict[str, Any]:
        """Figures of the steps since they were last given; empty for one rank, and for few steps. Collective.

        `own_ms`: of a step, by which ranks; `straggler`: a rank that has been slow for long enough.
        """
        if self._here.world_size == 1 or self._steps < STEPS:
            return {}
        if not self._hosts:
            self._hosts = self._here.gather(socket.gethostname())
        own_ms = self._here.gather(self._seconds / self._steps * 1e3)
        self._seconds, self._steps = 0.0, 0
        ratios = times_the_others(own_ms)
        self._slow = {rank: self._slow.get(rank, 0) + 1 for rank, ratio in enumerate(ratios) if ratio > SLOW}
        slowest = max(range(len(own_ms)), key=lambda rank: own_ms[rank])
        found: dict[str, Any] = {
            "own_ms": {"median": statistics.median(own_ms), "max": own_ms[slowest], "slowest_rank": slowest}
        }
        if self._slow.get(slowest, 0) >= TIMES:
            found["straggler"] = {
                "rank": slowest,
                "host": self._hosts[slowest],
                "ratio": ratios[slowest],
                "times_on_end": self._slow[slowest],
            }
        return found


def times_the_others(own_ms: Sequence[float]) -> list[float]:
    """By rank, how many times the median of the other ranks it needs; two ranks at least."""
    return [
        mine / max(statistics.median([*own_ms[:rank], *own_ms[rank + 1 :]]), 1e-9) for rank, mine in enumerate(own_ms)
    ]


def describe(line: dict[str, Any]) -> str:
    """A report's straggler in words."""
    found, own = line["straggler"], line["own_ms"]
    return (
        f"rank {found['rank']} on {found['host']} needs {found['ratio']:.1f} x the median step of the others: "
        f"{own['max']:.1f} ms of its own; all ranks wait for it"
    )

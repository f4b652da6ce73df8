"""How long something takes that all ranks do at once: they agree on when to start and on when to stop."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from dlrm_dist.runtime import Session

_MOST_CALLS = 10_000
_SLOWER, _MOST_AGAIN = 1.1, 3
_LONG_CALL = 0.5
"""Seconds of a first call from which on it counts: what is new to it, such as its pages, is little of that."""


def agreed_seconds(work: Callable[[], Any], calls: int, here: Session) -> float:
    """Of a call, on the slowest rank. Collective."""
    dist.barrier(group=here.control)
    started = time.perf_counter()
    for _ in range(calls):
        work()
    if here.device.type == "cuda":
        torch.cuda.synchronize(here.device)
    return slowest((time.perf_counter() - started) / calls, here)


def steady_seconds(work: Callable[[], Any], lasting: float, here: Session) -> float:
    """Of a call, on the slowest rank, after it has been called for about `lasting` seconds. Collective.

    The calls are made in runs of 1, 2, 4, ..., of which the last one counts; when that was slower than the one before,
    it is made again. So what is fast at first, such as a link with a token bucket, is not taken for its rate, and no
    run takes much longer than all before it together.
    """
    calls, elapsed, again = 1, 0.0, _MOST_AGAIN
    before = float("inf")
    while True:
        each = agreed_seconds(work, calls, here)
        elapsed += each * calls
        if elapsed < lasting or (calls == 1 and each <= _LONG_CALL):
            calls *= 2
        elif each <= _SLOWER * before or again == 0:
            return each
        else:
            again -= 1
        before = each


def own_seconds(work: Callable[[], Any], lasting: float, here: Session) -> float:
    """Of a call, the median on this rank, while all ranks do the same for about so many seconds. Collective."""
    work()
    calls = min(_MOST_CALLS, max(3, int(lasting / max(agreed_seconds(work, 1, here), 1e-9))))
    dist.barrier(group=here.control)
    times = []
    for _ in range(calls):
        started = time.perf_counter()
        work()
        if here.device.type == "cuda":
            torch.cuda.synchronize(here.device)
        times.append(time.perf_counter() - started)
    return median(times)


def slowest(seconds: float, here: Session) -> float:
    """The largest of the ranks' values. Collective."""
    found = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(found, op=dist.ReduceOp.MAX, group=here.control)
    return found.item()

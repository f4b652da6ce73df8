"""Who says for whom all wait; the ranks of a run are threads here."""

import time
from contextlib import ExitStack
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from dlrm_dist.pulse import Pulse
from dlrm_dist.waiting import Waiting

TIMEOUT = timedelta(seconds=3.6)


@pytest.fixture
def ranks():
    """Three ranks over one store."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20))
    waiting = [Waiting() for _ in range(3)]
    places = [SimpleNamespace(global_rank=n, world_size=3, timeout=TIMEOUT, store=store) for n in range(3)]
    return list(zip((Pulse(*each) for each in zip(places, waiting, strict=True)), waiting, strict=True))


def told(ranks, capfd, waits, hung=None):
    """What the ranks that live say while these wait; another note comes from the hung one before it hangs."""
    with ExitStack() as living:
        if hung is not None:
            pulse, waiting = ranks[hung]
            waiting.since = time.monotonic() if hung in waits else None
            with pulse.beating():
                time.sleep(0.6)
        for number, (pulse, _) in enumerate(ranks):
            if number != hung:
                living.enter_context(pulse.beating())
        for number in waits:
            ranks[number][1].since = time.monotonic()
        time.sleep(3)
    return [line for line in capfd.readouterr().err.splitlines() if "waiting for others" in line]


def test_the_lowest_rank_that_waits_tells_once(ranks, capfd):
    (line,) = told(ranks, capfd, waits=(0, 1))
    assert "waiting for others: rank 2 is in its start" in line


@pytest.mark.parametrize("waits", [(1, 2), (0, 1, 2)])
def test_a_rank_that_hangs_is_named_whatever_it_noted_last(ranks, capfd, waits):
    (line,) = told(ranks, capfd, waits, hung=0)
    assert line.endswith("waiting for others: rank 0 gives no sign of life")

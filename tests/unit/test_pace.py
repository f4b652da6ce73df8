"""Who is slow, who keeps others waiting, and in what: from figures and notes."""

import threading

import pytest
import torch.distributed as dist

from dlrm_dist import whereabouts
from dlrm_dist.lost_ranks import RollCall, _sentence
from dlrm_dist.pace import Pace, describe, times_the_others
from dlrm_dist.pulse import awaited
from dlrm_dist.waiting import Waiting


class Ranks:
    """A session of three ranks, of which the others need 10 ms, and this one what the test says."""

    world_size = 3

    def gather(self, value):
        return ["alpha", "alpha", value] if isinstance(value, str) else [10.0, 10.0, value]


def test_a_rank_is_compared_with_the_median_of_the_others():
    assert times_the_others([10.0, 20.0]) == [0.5, 2.0]
    assert times_the_others([10.0, 10.0, 30.0, 20.0]) == [0.5, 0.5, 3.0, 2.0]


def test_a_straggler_is_named_when_it_was_slow_in_three_reports_on_end_of_ten_steps_or_more(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "beta")
    pace = Pace(Ranks(), Waiting())
    found = []
    for own_ms in (16.0, 16.0, 14.0, 16.0, 16.0, 21.0):
        pace._seconds, pace._steps = 9.9, 9
        assert pace.report() == {}
        pace._seconds, pace._steps = own_ms / 1e3 * 10, 10
        found.append(pace.report())
    assert [("straggler" in each) for each in found] == [False] * 5 + [True]
    assert found[-1]["own_ms"] == {"median": 10.0, "max": pytest.approx(21.0), "slowest_rank": 2}
    assert describe(found[-1]).startswith(
        "rank 2 on beta needs 2.1 x the median step of the others: 21.0 ms of its own"
    )


def test_a_wait_is_not_own_time_and_other_threads_do_not_count(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def lasting(_work, seconds):
        now[0] += seconds

    waiting = Waiting()
    pace = Pace(Ranks(), waiting)
    monkeypatch.setattr(dist.Work, "wait", lasting)
    with waiting.measured(_NoModel()), pace.step():
        now[0] += 1.0
        dist.Work.wait(None, 5.0)
        other = threading.Thread(target=dist.Work.wait, args=(None, 0.25))
        other.start()
        other.join()
    assert (waiting.seconds, pace._seconds) == (5.0, 1.25)
    assert dist.Work.wait is lasting


class _NoModel:
    def register_forward_hook(self, _):
        return self

    def remove(self):
        pass


class Session:
    def agree(self):
        raise RuntimeError("gloo")


class All2All_Pooled_Req:  # noqa: N801  TorchRec's name
    @staticmethod
    def backward():
        raise RuntimeError("gloo")


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (Session().agree, "the agreement on stopping and saving"),
        (All2All_Pooled_Req.backward, "the exchange of embeddings' gradients"),
    ],
)
def test_the_collective_is_told_from_the_stack(call, what):
    with pytest.raises(RuntimeError) as caught:
        call()
    assert whereabouts.of_error(caught.value) == what


def test_who_keeps_others_waiting():
    notes = {1: {"waits": True, "what": "x", "step": 4}, 3: {"waits": False, "what": "the backward pass", "step": 4}}
    hosts = {1: "a", 2: "b", 3: "b"}
    line = awaited("the exchange of ids", [1, 2, 3], notes, hosts)
    assert line == (
        "the exchange of ids, waiting for others: rank 3 on b is in the backward pass of step 4; "
        "rank 2 on b gives no sign of life"
    )
    assert "all ranks wait" in awaited("the exchange of ids", [1], {1: notes[1]}, hosts)


def test_lost_ranks_are_named_with_their_hosts():
    assert _sentence(RollCall([2, 3], {}, 0, True, {2: "beta", 3: "beta"}), 9).startswith(
        "ranks 2, 3 on beta did not answer within 9 s (runtime.timeout_s)"
    )
    assert _sentence(RollCall([1], {}, 0, False), 9).startswith("rank 1 went away")

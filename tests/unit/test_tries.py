"""What the tries of a job know of each other, where hosts come and go."""

from datetime import timedelta

import pytest
import torch.distributed as dist

from dlrm_dist import tries


@pytest.fixture
def job(monkeypatch):
    """A job's store; call it with the port of the first agent to be in a try."""
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv(tries.JOB_STORE, f"localhost:{store.port}")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    monkeypatch.setenv("MASTER_ADDR", "alpha")

    def enter(port, job="job"):
        monkeypatch.setenv("MASTER_PORT", str(port))
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", job)
        tries.is_restart.cache_clear()

    yield enter
    tries.is_restart.cache_clear()


def test_all_ranks_of_a_try_know_alike_whether_it_is_the_first(job):
    """Whatever their agents' counts: that of a host which came back is 0."""
    for port, expected in ((1000, False), (1000, False), (1001, True), (1001, True)):
        job(port)
        assert tries.is_restart() is expected


def test_a_note_is_for_later_tries_of_the_same_job(job):
    job(1000)
    assert tries.recall("run") is None
    tries.note("run", "mine")
    job(1001)
    assert tries.recall("run") == "mine"
    job(1001, "another")
    assert tries.recall("run") is None


def test_tries_do_not_read_each_others_keys(job):
    job(1000)
    tries.store_of_this_try(timedelta(seconds=5), 0).set("x", "1")
    job(1001)
    assert not tries.store_of_this_try(timedelta(seconds=5), 0).check(["x"])


def test_without_a_launcher_there_is_one_try(monkeypatch):
    for name in (tries.JOB_STORE, "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.delenv(name, raising=False)
    tries.is_restart.cache_clear()
    tries.note("run", "mine")
    assert not tries.is_restart() and tries.recall("run") is None


def test_what_one_try_found_final_ends_the_later_ones(job):
    job(1000)
    assert tries.verdict() is None
    assert tries.final(2) == 2
    job(1001)
    assert tries.verdict() == 2

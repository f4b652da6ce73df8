"""What becomes of a run over two hosts when one is lost: who says what, who ends, and how it goes on."""

import signal
import time

import pytest

from benchmarks.hosts.jobs import Job, resumed_after, start_store
from tests.hosts.conftest import TRAIN_ROWS

pytestmark = pytest.mark.timeout(500)
BATCH_SIZE = 100
STEPS_OF_AN_EPOCH = -(-TRAIN_ROWS // BATCH_SIZE)
WORDS = ("--train.batch_size", BATCH_SIZE, "--train.log_every", 1, "--train.epochs", 9000)


def rows_after(step):
    epochs, rest = divmod(step, STEPS_OF_AN_EPOCH)
    return epochs * TRAIN_ROWS + rest * BATCH_SIZE


def first_of(hosts, agents):
    """The host with global rank 0, which speaks, and its agent; the other host and its agent."""
    speaks = ["step" in agent.output for agent in agents]
    assert sorted(speaks) == [False, True]
    first = speaks.index(True)
    return hosts[first], agents[first], hosts[1 - first], agents[1 - first]


def test_without_its_first_host_a_run_goes_on_and_takes_it_back(two_hosts_and_a_store, clicks, tmp_path):
    """No row is left out or trained on twice: every step is reported once, and counts the rows it should.

    In the end it is asked to stop, which all agents tell by their exit codes.
    """
    alpha, beta, gamma = two_hosts_and_a_store
    words = (*WORDS, "--checkpoint.every", 5, "--runtime.timeout_s", 30)
    job = Job(tmp_path, clicks, gamma.address, "1:2", *words)
    agents = [job.start(host) for host in (alpha, beta)]
    job.await_step(12, 90)
    first, _, other, survivor = first_of((alpha, beta), agents)
    saved = job.last_saved()
    first.kill()
    job.await_ranks(2, 60)
    said = survivor.wait_for(r"error: (ranks 0, 1 on \w+ went away.*); waited for in (.*)", 5)
    assert first.name in said.group(1) and said.group(2)
    job.await_step(20, 60)
    returned = job.start(first)
    step = job.await_ranks(4, 90)
    survivor.wait_for("asked to stop: saved after step", 5)  # at the boundary of a step, so that none is done twice
    job.await_step(step + 5, 60)
    for agent in (survivor, returned):
        agent.send(signal.SIGTERM)
    assert survivor.wait(60) == returned.wait(60) == 75
    steps = [line["step"] for line in job.lines()]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) >= step + 5
    assert [line["samples"] for line in job.lines()] == [rows_after(step) for step in steps]
    went_on = resumed_after([survivor, returned])
    assert saved >= 5 and went_on[0] >= saved and went_on == sorted(went_on)
    assert other.pids() == first.pids() == []


def test_a_cut_link_ends_both_sides_which_say_who_is_out_of_reach(two_hosts_and_a_store, clicks, tmp_path):
    """With exchanges in groups of their own, which TorchRec and the sums between hosts make."""
    alpha, beta, gamma = two_hosts_and_a_store
    words = (*WORDS, "--sharding.types", "table_row_wise", "--sharding.comm_precision", "bf16_between_hosts")
    job = Job(tmp_path, clicks, gamma.address, "2", *words, "--runtime.timeout_s", 6, max_restarts=0)
    agents = [job.start(host) for host in (alpha, beta)]
    job.await_step(3, 90)
    first, its_agent, lost, lost_agent = first_of((alpha, beta), agents)
    lost.cut()
    started = time.monotonic()
    assert its_agent.wait(40) == 1
    assert f"error: ranks 2, 3 on {lost.name} did not answer within 6 s (runtime.timeout_s)" in its_agent.output
    assert "; waited for in the " in its_agent.output
    assert lost_agent.wait(40) == 1
    for rank in (2, 3):
        said = f"error: rank {rank} on {lost.name} reaches neither ranks 0, 1 nor the job's store"
        assert said in lost_agent.output
    assert f"error: agent on {lost.name}: the rendezvous store" in lost_agent.output
    assert time.monotonic() - started < 45
    assert first.pids() == lost.pids() == []


def test_a_store_that_comes_back_knows_nothing_and_the_run_goes_on(two_hosts_and_a_store, clicks, tmp_path):
    """The agents remember what the job has noted: else its run would be refused, as one that is there already."""
    alpha, beta, gamma = two_hosts_and_a_store
    job = Job(tmp_path, clicks, gamma.address, "2", *WORDS, "--checkpoint.every", 5, "--runtime.timeout_s", 30)
    agents = [job.start(host) for host in (alpha, beta)]
    job.await_step(12, 90)
    saved = job.last_saved()
    gamma.kill()
    for agent in agents:
        agent.wait_for("waiting for it, to join the job again", 60)
    start_store(gamma)
    step = job.last_step()
    job.await_step(step + 5, 120)
    for agent in agents:
        agent.send(signal.SIGTERM)
    assert [agent.wait(60) for agent in agents] == [75, 75]
    assert saved >= 5 and min(resumed_after(agents)) >= saved
    steps = [line["step"] for line in job.lines()]
    assert steps == list(range(1, len(steps) + 1))
    assert [line["samples"] for line in job.lines()] == [rows_after(step) for step in steps]

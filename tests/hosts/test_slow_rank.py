"""A rank that is slower than the others, or that stands still, is named while the run goes on."""

import os
import signal

from benchmarks.hosts.jobs import Job, pid_of, slowed


def test_a_slow_rank_is_named_with_its_host_and_so_is_one_that_stands_still(two_hosts, clicks, tmp_path):
    alpha, beta = two_hosts
    words = ("--train.batch_size", 400, "--train.epochs", 9000, "--train.log_every", 5, "--runtime.timeout_s", 12)
    job = Job(tmp_path, clicks, alpha.address, "2", *words, max_restarts=0, ranks_per_host=1)
    first, second = (job.start(host) for host in (alpha, beta))
    job.await_step(15, 90)
    assert "warning: rank" not in first.output
    slow = pid_of(beta, 1)
    with slowed(slow, 0.9, period_s=0.1):
        said = first.wait_for(r"warning: rank 1 on beta needs (\S+) x the median step of the others: (\S+) ms", 120)
    assert float(said.group(1)) > 1.5
    (told, *_) = [line for line in job.lines() if "straggler" in line]
    assert told["straggler"]["rank"] == told["own_ms"]["slowest_rank"] == 1
    os.kill(slow, signal.SIGSTOP)
    first.wait_for(r"step \d+: \d+ s in the .*, waiting for others: rank 1 on beta gives no sign of life", 15)
    assert first.wait(30) == 1
    assert "error: rank 1 on beta did not answer within 12 s (runtime.timeout_s)" in first.output
    assert second.is_running

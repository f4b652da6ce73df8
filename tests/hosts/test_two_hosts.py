"""Training on two hosts, over their own addresses, is training on one."""

import json
import subprocess

import pytest

from benchmarks.hosts.jobs import MODEL, Job
from dlrm_dist.local_ranks import environments, python, wait
from tests.helpers import ROOT
from tests.hosts.conftest import TRAIN_ROWS

BATCH_SIZE = 100
STEPS = -(-TRAIN_ROWS // BATCH_SIZE)
WORDS = ("--train.batch_size", BATCH_SIZE, "--train.epochs", 1, "--train.log_every", 1)


def on_one_host(folder, data, ranks_of_a_host):
    """Four ranks here, told how many of them are on a host, by which they plan; gives metrics.jsonl."""
    command = [python(), ROOT / "launch" / "train.py", "--data.path", data, "--run.name", "mine"]
    command += ["--runtime.device", "cpu", "--runtime.threads", 1, *MODEL, *WORDS]
    folder.mkdir()
    with (folder / "log").open("w") as log:
        ranks = [
            subprocess.Popen([str(word) for word in command], cwd=folder, env=environment, stdout=log, stderr=log)
            for environment in environments(4, ranks_of_a_host)
        ]
        codes = wait(ranks, 200)
    assert codes == [0] * 4, (folder / "log").read_text()[-3000:]
    return [json.loads(line) for line in (folder / "runs" / "mine" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.timeout(450)
def test_two_hosts_of_two_ranks_train_as_one_host_of_four(two_hosts, clicks, tmp_path):
    """By the same plan bit for bit: gloo's ring of four ranks adds up in one order, wherever they are.

    By plans of their own, for one host and for two, losses differed by 1.5e-8: FBGEMM groups the tables of a rank.
    """
    alpha, beta = two_hosts
    job = Job(tmp_path / "two", clicks, alpha.address, "2", *WORDS)
    agents = [job.start(host) for host in (alpha, beta)]
    for agent in agents:
        assert agent.wait(200) == 0
    alone = on_one_host(tmp_path / "planned alike", clicks, 2)
    for split, figures, count in (("train", ("step", "samples", "loss"), STEPS), ("valid", ("auc", "log_loss"), 1)):
        here, there = ([line for line in lines if line["split"] == split] for lines in (job.lines(split), alone))
        assert len(here) == count
        for figure in figures:
            assert [line[figure] for line in here] == [line[figure] for line in there]
    losses = [line["loss"] for line in job.lines()]
    assert len(set(losses)) == STEPS
    by_its_own_plan = [line for line in on_one_host(tmp_path / "one", clicks, 4) if line["split"] == "train"]
    assert [line["loss"] for line in by_its_own_plan] == pytest.approx(losses, abs=1e-6)

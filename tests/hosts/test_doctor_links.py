"""`dlrm-dist doctor` finds the rate of the link between hosts: fast or slow, of one device or shared by two."""

import json
import sys
import time

import pytest

from dlrm_dist.planning.cluster import load_cluster
from tests.helpers import ROOT

TOLERANCE = 0.2


def start(host, place, ranks_per_host, master, *words):
    """A host's ranks; the last one's output is the host's."""
    started = []
    for local in range(ranks_per_host):
        environment = {"RANK": place * ranks_per_host + local, "WORLD_SIZE": 2 * ranks_per_host, "LOCAL_RANK": local}
        environment |= {"LOCAL_WORLD_SIZE": ranks_per_host, "OMP_NUM_THREADS": 1, "PYTHONPATH": ROOT}
        environment |= {"MASTER_ADDR": master, "MASTER_PORT": 29500}
        command = [sys.executable, ROOT / "launch" / "doctor.py", *words, "--runtime.device", "cpu"]
        started.append(host.start(*command, cwd=ROOT, **{key: str(value) for key, value in environment.items()}))
    return started


def examined(two_hosts, ranks_per_host, rate_mbit, out):
    """What it found over a link of that rate."""
    for host in two_hosts:
        host.limit(f"{rate_mbit}mbit")
    words = ("--quick", "--json", "--out", out)
    hosts = enumerate(two_hosts)
    ranks = [rank for place, host in hosts for rank in start(host, place, ranks_per_host, two_hosts[0].address, *words)]
    assert [rank.wait(100) for rank in ranks] == [0] * len(ranks)
    output = ranks[0].output
    return json.loads(output[output.index("{\n") :])


@pytest.mark.parametrize(("rate_mbit", "ranks_per_host"), [(100, 1), (200, 2), (400, 1)])
def test_the_rate_of_a_link_and_a_devices_share_of_it(two_hosts, tmp_path, rate_mbit, ranks_per_host):
    """gloo's payload is 95% of what tbf counts, which is whole frames and the answers to the other direction."""
    out = tmp_path / "two.toml"
    found = examined(two_hosts, ranks_per_host, rate_mbit, out)
    assert found["link_gb_s"] * 8e3 == pytest.approx(rate_mbit, rel=TOLERANCE)
    cluster = load_cluster(str(out))
    assert cluster.size == f"2x{ranks_per_host}"
    assert cluster.value("inter_host_gb_s") * ranks_per_host * 8e3 == pytest.approx(rate_mbit, rel=TOLERANCE)
    assert cluster.value("link_efficiency") == 1


def test_over_a_very_slow_link_it_ends_in_time(two_hosts, tmp_path):
    """1 Mbit/s: a message of 64 MiB would take 9 minutes."""
    began = time.monotonic()
    found = examined(two_hosts, 1, 1, tmp_path / "two.toml")
    assert found["seconds"] < 45
    assert time.monotonic() - began < 90
    assert found["link_gb_s"] * 8e3 == pytest.approx(1, rel=TOLERANCE)

"""`dlrm-dist doctor` on two hosts: the rate of the link between them, and a run folder that they do not share."""

import json
import sys

from dlrm_dist.planning.cluster import load_cluster
from tests.helpers import ROOT

RATE_GBIT_S = 0.2


def start(host, rank, master, folder, *words):
    """A rank on a host, in the host's own folder."""
    (folder / host.name / "runs").mkdir(parents=True)
    environment = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "OMP_NUM_THREADS": 1}
    environment |= {"MASTER_ADDR": master, "MASTER_PORT": 29500, "PYTHONPATH": ROOT}
    command = [sys.executable, ROOT / "launch" / "doctor.py", *words]
    return host.start(*command, cwd=folder / host.name, **{key: str(value) for key, value in environment.items()})


def test_the_rate_of_a_throttled_link_and_a_folder_that_is_not_shared(two_hosts, tmp_path):
    alpha, beta = two_hosts
    alpha.limit(f"{RATE_GBIT_S * 1000:.0f}mbit")
    words = ("--quick", "--json", "--storage", "runs", "--out", tmp_path / "two.toml", "--runtime.timeout_s", 60)
    ranks = [start(host, rank, alpha.address, tmp_path, *words) for rank, host in enumerate((alpha, beta))]
    assert [rank.wait(100) for rank in ranks] == [1, 1]
    output = ranks[0].output
    found = json.loads(output[output.index("{\n") :])
    assert (found["ranks"], found["hosts"]) == (2, 2)
    assert [each["host"] for each in found["facts"]] == ["alpha", "beta"]
    assert abs(found["link_gb_s"] * 8 / RATE_GBIT_S - 1) < 0.2
    (skew,) = found["skews"]
    assert abs(skew["seconds"]) <= skew["uncertainty"] < 0.1  # both have this machine's clock
    (broken,) = (each for each in found["findings"] if each["level"] == "broken")
    assert "beta does not see what alpha writes" in broken["text"]
    assert any(each["what"] == "between hosts" for each in found["findings"])
    assert list((tmp_path / "alpha" / "runs").iterdir()) == list((tmp_path / "beta" / "runs").iterdir()) == []
    cluster = load_cluster(str(tmp_path / "two.toml"))
    assert cluster.size == "2x1"
    planned = cluster.value("inter_host_gb_s") * cluster.value("link_efficiency") * cluster.devices_per_host
    assert abs(planned * 8 / RATE_GBIT_S - 1) < 0.2
    assert cluster.constants.inter_host_gb_s.kind == "measured"

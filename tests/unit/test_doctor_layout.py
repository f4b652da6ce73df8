"""What the doctor says of ranks on hosts: names, cores under a quota, TorchRec's series."""

from dataclasses import replace

import pytest

from dlrm_dist.doctor import host_findings, layout_findings
from dlrm_dist.doctor.examination import Found
from dlrm_dist.doctor.host import Facts, cores_of

VERSIONS = {"python": "3.11.7", "torch": "2.13.0+cpu", "torchrec": "1.8.0", "fbgemm_gpu": "1.8.0"}


def ranks(*names, ranks_per_host=2, **changes):
    base = Facts(0, "", ranks_per_host, VERSIONS, "", "Xeon", (0, 1, 2, 3), 2, 64.0, 60.0, 0.0, 8.0, 65536)
    return [replace(base, rank=rank, host=name, **changes) for rank, name in enumerate(names)]


def found(facts):
    nothing = {"speeds": [], "lines": [], "skews": [], "reads": [], "sights": [], "writes": []}
    return Found("cpu", "gloo", 2, facts, data=None, storage=None, seconds=1.0, **nothing)


@pytest.mark.parametrize(
    ("names", "ranks_per_host", "said"),
    [
        (("a", "a", "b", "b"), 2, []),
        (("a", "b"), 1, []),
        (("a", "b", "a", "b"), 2, ["host 0: its 2 ranks are on a, b", "host 1: its 2 ranks are on a, b"]),
        (("a", "a"), 1, ["host name a: of 2 hosts"]),
    ],
)
def test_names_and_local_world_size_belong_together(names, ranks_per_host, said):
    lines = [str(each) for each in layout_findings.findings(ranks(*names, ranks_per_host=ranks_per_host))]
    for expected, line in zip(said, [each for each in lines if "host name" not in each] or lines, strict=True):
        assert expected in line
        assert "LOCAL_WORLD_SIZE" in line


def test_several_machines_as_one_host_are_broken_and_one_machine_as_several_is_a_warning():
    assert [each.level for each in layout_findings.findings(ranks("a", "b"))] == ["broken"]
    assert [each.level for each in layout_findings.findings(ranks("a", "a", ranks_per_host=1))] == ["warning"]


def test_a_quota_counts_as_cores_do():
    facts = ranks("a", "a", quota=2.5)
    assert cores_of(facts) == 2
    assert cores_of(ranks("a", "a")) == 4
    (line,) = host_findings.findings(found(facts))
    assert "4 threads of 2 ranks on 2 cores" in str(line)
    assert list(host_findings.findings(found(ranks("a", "a")))) == []


def test_torchrec_must_be_of_fbgemms_series():
    (line,) = host_findings.findings(found(ranks("a", "a", versions={**VERSIONS, "torchrec": "1.7.0"})))
    assert "broken: torchrec and fbgemm_gpu: torchrec 1.7.0 with fbgemm_gpu 1.8.0" in str(line)
    # pyproject.toml pins torchrec 1.6.1 and fbgemm-gpu 1.6.0 for CUDA.
    pinned = {**VERSIONS, "torch": "2.11.0", "torchrec": "1.6.1", "fbgemm_gpu": "1.6.0"}
    assert list(host_findings.findings(found(ranks("a", "a", versions=pinned)))) == []

"""What the doctor makes of figures: findings, the cluster file, the printed page."""

from dataclasses import replace
from pathlib import Path

import pytest

from dlrm_dist.data import files
from dlrm_dist.doctor import cluster_file, report
from dlrm_dist.doctor.clocks import Skew
from dlrm_dist.doctor.disk import Transfer
from dlrm_dist.doctor.examination import Found
from dlrm_dist.doctor.findings import findings
from dlrm_dist.doctor.host import Facts
from dlrm_dist.doctor.links import BETWEEN, INSIDE, Line, rate
from dlrm_dist.doctor.speed import Speed
from dlrm_dist.errors import UserError
from dlrm_dist.packages import installed
from dlrm_dist.planning.cluster import load_cluster

VERSIONS = {"python": "3.11.7", "torch": "2.13.0+cpu", "torchrec": "1.8.0", "fbgemm_gpu": "1.8.0"}
KNOWN = load_cluster("cpu")


def facts(rank, host, **changes):
    base = Facts(rank, host, 2, VERSIONS, "", "Xeon", (0, 1), 1, 64.0, 60.0, 0.0, 8.0, 65536)
    return replace(base, **changes)


def line(scope, collective, size, gb_s, ranks=2):
    share = (ranks - 1) / ranks * (2 if collective == "all-reduce" else 1)
    return Line(scope, collective, size, size * share / gb_s / 1e9, ranks)


def healthy(**changes):
    """Two hosts of two ranks, as good as the known cluster."""
    speed = Speed(KNOWN.value("ddr_gb_s"), 0.0, 0.0, KNOWN.value("fp32_tflop_s"), KNOWN.value("bf16_tflop_s"))
    lines = [
        line(scope, collective, size, 1.0)
        for scope in (INSIDE, BETWEEN)
        for collective in ("all-to-all", "all-reduce")
        for size in (8, 1 << 20, 16 << 20)
    ]
    good = Transfer(1 << 30, 1.0)
    base = Found(
        device_type="cpu",
        backend="gloo",
        ranks_per_host=2,
        facts=[facts(rank, "alpha" if rank < 2 else "beta") for rank in range(4)],
        speeds=[speed] * 4,
        lines=lines,
        skews=[Skew(2, 0.0001, 0.0002)],
        data="clicks",
        reads=[good] * 4,
        storage=Path("runs"),
        sights=[True] * 4,
        writes=[good] * 4,
        seconds=30.0,
    )
    return replace(base, **changes)


def said(found):
    return [str(each) for each in findings(found, KNOWN)]


def of_rank(rank, **changes):
    found = healthy().facts
    return [*found[:rank], replace(found[rank], **changes), *found[rank + 1 :]]


def test_healthy_hosts_have_no_findings():
    assert said(healthy()) == []
    assert "nothing amiss" in report.text(healthy(), [])


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        (
            {"facts": of_rank(3, versions={**VERSIONS, "torchrec": "1.7.0"})},
            "broken",
            ("versions of torchrec", "1.8.0 on ranks 0, 1, 2, 1.7.0 on rank 3"),
        ),
        (
            {"facts": [facts(rank, "a", versions={**VERSIONS, "torch": "2.12.1"}) for rank in range(4)]},
            "broken",
            ("fbgemm_gpu 1.8.0 and torch 2.12.1 do not belong together", "ranks 0, 1, 2, 3", "make"),
        ),
        ({"facts": of_rank(1, kernels_problem="undefined symbol: x")}, "broken", ("undefined symbol: x (rank 1)",)),
        (
            {"facts": of_rank(2, threads=8)},
            "warning",
            ("cores of beta", "9 threads of 2 ranks on 2 cores", "4.5 times", "--runtime.threads 1"),
        ),
        ({"facts": of_rank(2, available_gib=3.0)}, "warning", ("memory of beta", "3.0 GiB free for 2 ranks")),
        ({"facts": of_rank(0, open_files=256)}, "warning", ("open files of alpha", "256", "576 or more for 4 ranks")),
        ({"facts": of_rank(0, shm_gib=0.0625)}, "warning", ("/dev/shm of alpha", "64 MiB", "--shm-size")),
        ({"skews": [Skew(2, -3.5, 0.01)]}, "warning", ("clock of beta", "-3.500 s from alpha's, +- 10.0 ms", "NTP")),
        ({"sights": [True, True, False, False]}, "broken", ("storage runs", "beta does not see what alpha writes")),
        (
            {"reads": [Transfer(1, 1.0)] * 3 + [Transfer(0, 0.0, "clicks: no such file")]},
            "broken",
            ("the data on beta", "clicks: no such file"),
        ),
        (
            {
                "writes": [Transfer(0, 0.0, "runs: cannot be written: No space left on device")]
                + [Transfer(1 << 30, 1)] * 3
            },
            "broken",
            ("the storage on alpha", "No space left"),
        ),
        (
            {"reads": [Transfer(16 << 20, 1.6)] * 4},
            "warning",
            ("reading clicks: 10 MB/s a rank; expected 600 MB/s", "65,536 rows/s a rank"),
        ),
        (
            {"writes": [Transfer(1 << 30, 1.0)] * 2 + [Transfer(5_000_000, 1.0)] * 2},
            "warning",
            ("writing to runs from beta", "10.0 MB/s", "10 GB of a checkpoint take 1,000 s"),
        ),
        (
            {"speeds": healthy().speeds[:2] + [replace(healthy().speeds[2], memory_gb_s=4.5)] * 2},
            "warning",
            ("memory of beta", "60% of the other hosts'"),
        ),
        (
            {"speeds": [replace(healthy().speeds[0], fp32_tflop_s=0.0235)] * 4},
            "warning",
            ("fp32 arithmetic", "0.0235 TFLOP/s", "4.0 times"),
        ),
    ],
)
def test_what_is_amiss_is_one_line_with_its_cost(changes, level, words):
    (found,) = said(healthy(**changes))
    assert found.startswith(f"{level}: ")
    assert "\n" not in found
    for each in words:
        assert each in found


def test_a_clock_within_its_uncertainty_and_few_bytes_of_data_are_nothing():
    assert said(healthy(skews=[Skew(2, 0.3, 0.25)], reads=[Transfer(1000, 0.5, is_all=True)] * 4)) == []


def test_a_slow_link_costs_the_exchange_of_a_step():
    """25 MB/s a rank: 2 x 2,048 x 26 x 128 x 4 bytes, half of them to the other host, take 1.09 s."""
    lines = [each for each in healthy().lines if each.scope == INSIDE]
    lines += [line(BETWEEN, name, 1 << 20, 0.025) for name in ("all-to-all", "all-reduce")]
    (found,) = said(healthy(lines=lines))
    assert "between hosts: 25 MB/s a rank; expected 1,000 MB/s" in found
    assert "takes 1.1 s a step" in found
    page = report.text(healthy(lines=lines), [])
    assert "between hosts: 25 MB/s a rank, 50 MB/s a host = 0.4 Gbit/s each way" in page


def test_the_rate_of_a_link_is_of_messages_that_take_time():
    """What a token bucket lets pass at once is small; a single slow size does not make a link slow."""
    sizes = {8: 0.001, 64 << 10: 0.9, 1 << 20: 0.5, 16 << 20: 0.4}
    lines = [line(scope, "all-to-all", size, gb_s) for scope in (INSIDE, BETWEEN) for size, gb_s in sizes.items()]
    assert rate(lines, BETWEEN) == pytest.approx(0.5)
    assert rate(lines, INSIDE) == pytest.approx(0.4)
    assert rate(lines[:4], BETWEEN) is None
    assert rate(lines[4:6], BETWEEN) == pytest.approx(0.9)


def test_a_cluster_file_is_read_back_as_it_was(tmp_path):
    path = tmp_path / "mine.toml"
    device = 'a "Xeon" \\ of theirs'
    found = healthy(facts=[replace(each, device=device) for each in healthy().facts])
    made = cluster_file.make(found, str(path), "dlrm-dist doctor")
    cluster_file.write(made, path)
    assert load_cluster(str(path)) == made
    assert (made.size, made.device) == ("2x2", "cpu")
    assert made.value("ddr_gib") == 32
    assert made.value("inter_host_gb_s") == made.value("intra_host_gb_s") == 1.0
    assert device in made.constants.inter_host_gb_s.source
    assert made.constants.reserved.kind == "assumed"


def test_links_of_a_gpu_that_were_not_measured_have_its_efficiency_in_them(tmp_path):
    known = load_cluster("h100")
    gpu = facts(0, "alpha", device=f"NVIDIA {known.gpu_names[0]} 80GB", device_memory_gib=79.0)
    speed = Speed(20.0, 3000.0, 50.0, 50.0, 700.0)
    found = healthy(device_type="cuda", facts=[gpu], speeds=[speed], lines=[], ranks_per_host=1, skews=[])
    made = cluster_file.make(found, str(tmp_path / "one.toml"), "dlrm-dist doctor")
    cluster_file.write(made, tmp_path / "one.toml")
    assert load_cluster(str(tmp_path / "one.toml")) == made
    assert made.gpu_names == known.gpu_names
    for name in ("intra_host_gb_s", "inter_host_gb_s"):
        assert made.value(name) == pytest.approx(known.value(name) * known.value("link_efficiency"), rel=1e-3)
    assert (made.value("link_efficiency"), made.value("hbm_gib"), made.value("host_link_gb_s")) == (1, 79, 50)
    assert made.value("hbm_gb_s") == known.value("hbm_gb_s")


def test_versions_that_are_asked_for_are_those_installed():
    from dlrm_dist.doctor import host

    assert host.versions()["torch"] == installed(["torch"])["torch"]


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_the_files_of_a_folder_are_those_below_it_too(prefix, tmp_path):
    for name in ("a", "train/b", "train/deeper/c", ".hidden", "train/.also"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    found = files.find_below(f"{prefix}{tmp_path}")
    assert {Path(each.path).name: each.size for each in found} == {"a": 1, "b": 7, "c": 14}
    assert [each.size for each in files.find_below(f"{prefix}{tmp_path}/train/b")] == [7]
    with pytest.raises(UserError, match="no such file"):
        files.find_below(f"{prefix}{tmp_path}/none")

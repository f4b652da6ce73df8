"""Cores and memory that count under limits of cgroups, told by files as Linux lays them out."""

import os

import pytest

from dlrm_dist import cores, memory, runtime
from tests.helpers import ROOT


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def machine(root, own, files):
    """A machine on which this process's cgroups are `own`, with the files of /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(own)
    (root / "proc/meminfo").write_text("MemTotal:  100 kB\nMemFree:  20 kB\nMemAvailable:  80 kB\n")
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V2, V1 = "0::/job/step\n", "5:memory:/job\n4:cpu,cpuacct:/job/step\n3:cpuset:/job\n0::/\n"


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        (V2, {"job/step/cpu.max": "400000 100000\n"}, 4),
        (V2, {"job/step/cpu.max": "max 100000\n"}, 8),
        (V2, {"job/step/cpu.max": "max 100000\n", "job/cpu.max": "300000 100000\n"}, 3),
        (V2, {"job/step/cpu.max": "290000 100000\n"}, 2),
        (V2, {"job/step/cpu.max": "50000 100000\n"}, 1),
        (V2, {"job/step/cpu.max": "6400000 100000\n"}, 8),
        (V2, {"job/step/cpu.max": "100000 50000\n"}, 2),
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/../../host/path\n", {"cpu.max": "200000 100000\n"}, 2),
        (
            V1,
            {"cpu,cpuacct/job/step/cpu.cfs_quota_us": "500000", "cpu,cpuacct/job/step/cpu.cfs_period_us": "100000"},
            5,
        ),
        (V1, {"cpu,cpuacct/job/step/cpu.cfs_quota_us": "-1", "cpu,cpuacct/job/step/cpu.cfs_period_us": "100000"}, 8),
        (V1, {"cpu/job/cpu.cfs_quota_us": "300000", "cpu/job/cpu.cfs_period_us": "100000"}, 3),
        ("4:cpu,cpuacct:/docker/1f\n", {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        (V1, {"memory/job/step/cpu.cfs_quota_us": "100000", "memory/job/step/cpu.cfs_period_us": "100000"}, 8),
        (V2, {}, 8),
    ],
)
def test_cores_under_a_quota(tmp_path, own, files, expected):
    assert cores.usable(machine(tmp_path, own, files)) == expected


def test_without_cgroups_those_it_is_bound_to(tmp_path, monkeypatch):
    assert cores.usable(tmp_path) == 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    assert cores.usable(tmp_path) == 2


def test_ranks_share_what_the_quota_leaves(monkeypatch):
    monkeypatch.setattr(cores, "quotas", lambda _root: [6.5])
    assert [runtime.choose_threads("auto", ranks) for ranks in (1, 2, 4, 8)] == [6, 3, 1, 1]
    assert runtime.choose_threads(5, 4) == 5


def test_cores_are_counted_in_one_place():
    counting = [
        str(path.relative_to(ROOT))
        for folder in ("dlrm_dist", "launch")
        for path in (ROOT / folder).rglob("*.py")
        if any(name in path.read_text() for name in ("cpu_count", "sched_getaffinity", "ThreadPoolExecutor()"))
    ]
    assert counting == ["dlrm_dist/cores.py"]


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        (V2, {}, (100, 80)),
        (V2, {"job/step/memory.max": "max\n", "job/step/memory.current": "9999999\n"}, (100, 80)),
        (V2, {"job/memory.max": "51200\n", "job/memory.current": "51200\n"}, (50, 0)),
        (V2, {"job/step/memory.max": "51200\n", "job/step/memory.current": "20480\n"}, (50, 30)),
        (V2, {"job/step/memory.max": "99999999\n", "job/step/memory.current": "0\n"}, (100, 80)),
        (
            V2,
            {
                "job/memory.max": "51200\n",
                "job/memory.current": "51200\n",
                "job/memory.stat": "anon 1\ninactive_file 10240\n",
            },
            (50, 10),
        ),
        (V1, {"memory/job/memory.limit_in_bytes": "51200", "memory/job/memory.usage_in_bytes": "40960"}, (50, 10)),
        (V1, {"memory/job/memory.limit_in_bytes": "9223372036854771712"}, (100, 80)),
    ],
)
def test_memory_under_a_limit(tmp_path, own, files, expected):
    root = machine(tmp_path, own, files)
    assert (memory.total(root) / 1024, memory.available(root) / 1024) == expected


def test_the_memory_of_this_machine():
    assert 0 < memory.available() <= memory.total()

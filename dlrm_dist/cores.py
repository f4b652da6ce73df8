"""How many cores this process may use: those it is bound to, or fewer where a container has a quota of their time.

A container of 4 cores on a host of 64 sees all 64; 64 threads spend a period's quota at its beginning, and all ranks
stand still for the rest of it. Quotas are those of cgroups, version 1 or 2, at each level.
"""

import os
from pathlib import Path

from dlrm_dist import cgroups


def bound() -> tuple[int, ...]:
    """The cores that this process is bound to."""
    return tuple(sorted(os.sched_getaffinity(0)))


def usable(root: Path = Path("/")) -> int:
    """The number of cores, at least 1; `root` has `proc/` and `sys/`."""
    return max(1, min([len(bound()), *(int(quota) for quota in quotas(root))]))


def quotas(root: Path = Path("/")) -> list[float]:
    """Cores' worth of time that this process's cgroup and those around it grant; none where nothing limits it."""
    folders = cgroups.folders("cpu", root)
    return [quota for folder in folders for quota in (_version_2(folder), _version_1(folder)) if quota]


def _version_2(folder: Path) -> float | None:
    words = cgroups.words(folder / "cpu.max")
    return int(words[0]) / int(words[1]) if len(words) == 2 and words[0] != "max" else None


def _version_1(folder: Path) -> float | None:
    quota, period = cgroups.words(folder / "cpu.cfs_quota_us"), cgroups.words(folder / "cpu.cfs_period_us")
    return int(quota[0]) / int(period[0]) if quota and period and int(quota[0]) > 0 else None

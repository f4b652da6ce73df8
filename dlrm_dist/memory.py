"""How much memory this machine has for the ranks here: all of it, or less where a container has a limit."""

import re
from pathlib import Path

from dlrm_dist import cgroups

_NAMES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Of cgroups version 2 and 1: the limit, what is used, and in `memory.stat` the cached files that can be dropped."""


def total(root: Path = Path("/")) -> int:
    """Bytes that may be used in all; `root` has `proc/` and `sys/`."""
    return min([_info("MemTotal", root), *(limit for limit, _ in _limits(root))])


def available(root: Path = Path("/")) -> int:
    """Bytes of it that are not in use."""
    return max(0, min([_info("MemAvailable", root), *(limit - used for limit, used in _limits(root))]))


def _info(name: str, root: Path) -> int:
    found = re.search(rf"^{name}: +(\d+) kB$", (root / "proc/meminfo").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"/proc/meminfo has no {name}")
    return int(found[1]) * 1024


def _limits(root: Path) -> list[tuple[int, int]]:
    """Limit and use of this process's group and those around it."""
    found = []
    for folder in cgroups.folders("memory", root):
        for limit_name, used_name, cached_name in _NAMES:
            limit, used = cgroups.number(folder / limit_name), cgroups.number(folder / used_name)
            if limit is not None:
                found.append((limit, max(0, (used or 0) - _cached(folder, cached_name))))
    return found


def _cached(folder: Path, name: str) -> int:
    words = cgroups.words(folder / "memory.stat")
    return int(words[words.index(name) + 1]) if name in words else 0

"""The control groups that this process is in: what a container or a scheduler allows it, at each level."""

from collections.abc import Iterator
from pathlib import Path

_TOP = "sys/fs/cgroup"


def folders(controller: str, root: Path = Path("/")) -> Iterator[Path]:
    """The groups with a controller, from the innermost to the outermost that can be seen from here.

    Of cgroups version 1 and 2. A container may see its own as the top, while /proc names it by its path on the host:
    then only the top is there.

    Args:
        controller: such as `cpu` or `memory`.
        root: has `proc/` and `sys/`.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # no cgroups, as on other systems than Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for name in {controllers, controller} if controllers else ("", "unified"):
            top = root / _TOP / name
            group = top / path.lstrip("/")
            yield from (each for each in (group, *group.parents) if each.is_relative_to(top))


def words(file: Path) -> list[str]:
    """What a group's file says; nothing if it is not there."""
    try:
        return file.read_text().split()
    except OSError:
        return []


def number(file: Path) -> int | None:
    """The number in a group's file; None if it is not there or says `max`."""
    found = words(file)
    return int(found[0]) if len(found) == 1 and found[0].lstrip("-").isdigit() else None

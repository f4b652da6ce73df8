"""This process's place among the ranks, as its launcher's environment says; without a launcher it is the only one."""

import os


def is_rank() -> bool:
    """Whether a launcher has started this process as one of several ranks."""
    return "RANK" in os.environ


def global_rank() -> int:
    """Among all ranks, from 0."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """The number of all ranks."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Among the ranks of this host, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """The number of ranks on this host."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

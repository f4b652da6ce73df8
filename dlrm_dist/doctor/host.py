"""What a rank finds on its host without measuring: versions, cores, memory, limits."""

import importlib
import platform
import resource
import shutil
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dlrm_dist import cores, memory
from dlrm_dist.errors import first_line
from dlrm_dist.packages import FBGEMM, installed
from dlrm_dist.planning.cluster import GIB
from dlrm_dist.runtime import Session, processor

_OTHERS = ("torch", "torchrec", "pyarrow", "numpy")


@dataclass(frozen=True)
class Facts:
    """Of one rank."""

    rank: int
    host: str
    local_world_size: int
    versions: dict[str, str]
    kernels_problem: str
    """Why FBGEMM's kernels do not load; empty if they do."""
    device: str
    """The GPU's name, or the processor's."""
    cores: tuple[int, ...]
    """That this process may use."""
    threads: int
    memory_gib: float
    available_gib: float
    device_memory_gib: float
    shm_gib: float | None
    """Of /dev/shm; None if there is none."""
    open_files: int
    """That this process may have open."""
    quota: float | None = None
    """Cores' worth of time that a container grants; None where nothing limits it."""


def facts(here: Session) -> Facts:
    """This rank's."""
    on_gpu = here.device.type == "cuda"
    shm = Path("/dev/shm")
    return Facts(
        rank=here.global_rank,
        host=socket.gethostname(),
        local_world_size=here.local_world_size,
        versions=versions(),
        kernels_problem=_kernels_problem(),
        device=torch.cuda.get_device_name(here.device) if on_gpu else processor(),
        cores=cores.bound(),
        threads=here.threads,
        memory_gib=memory.total() / GIB,
        available_gib=memory.available() / GIB,
        device_memory_gib=torch.cuda.get_device_properties(here.device).total_memory / GIB if on_gpu else 0.0,
        shm_gib=shutil.disk_usage(shm).total / GIB if shm.is_dir() else None,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        quota=min(cores.quotas(), default=None),
    )


def versions() -> dict[str, str]:
    """Of Python and of the packages that must be alike on all ranks; fbgemm_gpu is whichever of its two is there."""
    found = installed((*_OTHERS, *FBGEMM))
    fbgemm = next((found[name] for name in FBGEMM if name in found), "missing")
    others = {name: found.get(name, "missing") for name in _OTHERS}
    return {"python": platform.python_version(), **others, "fbgemm_gpu": fbgemm}


def _kernels_problem() -> str:
    try:
        importlib.import_module("fbgemm_gpu")  # registers the operators
        sums = torch.ops.fbgemm.asynchronous_complete_cumsum(torch.tensor([1, 2])).tolist()
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return first_line(error)
    return "" if sums == [0, 1, 3] else f"a wrong cumulative sum: {sums}"


def cores_of(facts: Sequence[Facts]) -> int:
    """The cores that ranks of one host may use together."""
    bound = len({core for each in facts for core in each.cores})
    quotas = [each.quota for each in facts if each.quota is not None]
    return max(1, min([bound, *map(int, quotas)]))

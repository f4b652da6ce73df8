"""The process group, ranks, device, threads: what of a run belongs to the machine, as one context manager."""

import ctypes
import logging
import os
import platform
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from dlrm_dist import cores, lost_ranks, place, speaking, tries
from dlrm_dist.errors import RunFailedError, UserError
from dlrm_dist.sections import RuntimeSection

T = TypeVar("T")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


@dataclass(frozen=True)
class Session:
    """This process's place in the run. Global rank 0 is the one that speaks and writes."""

    global_rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device
    threads: int
    timeout: timedelta
    control: dist.ProcessGroup
    """All ranks over gloo: what is agreed there waits for no GPU."""
    store: dist.Store
    """Of this try of the job, on all ranks."""

    @property
    def is_main(self) -> bool:
        """Whether this is global rank 0."""
        return self.global_rank == 0

    def agree(self, *flags: bool) -> list[bool]:
        """For each flag whether any rank has raised it. Collective."""
        values = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self.control)
        return [bool(value) for value in values]

    def gather(self, value: T) -> list[T]:
        """Each rank's value, by rank; small ones. Collective."""
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, value, group=self.control)
        return found

    def from_main(self, make: Callable[[], T]) -> T:
        """What `make` returns on global rank 0, on every rank; what it refuses is refused on all. Collective."""
        box: list[Any] = [None, None]
        if self.is_main:
            try:
                box[0] = make()
            except (UserError, RunFailedError) as error:
                box[1] = error
        dist.broadcast_object_list(box, src=0)
        if box[1] is not None:
            raise box[1]
        return box[0]


def choose_device(name: str, local_rank: int, ranks_on_host: int) -> torch.device:
    """The device of a rank.

    Raises:
        UserError: CUDA was asked for and this host has fewer GPUs than ranks.
    """
    gpus = torch.cuda.device_count()
    if name == "cuda" and gpus < ranks_on_host:
        raise UserError(
            f"runtime.device is cuda, but this host has {gpus} GPUs for {ranks_on_host} ranks; "
            "start fewer ranks, or use --runtime.device cpu"
        )
    if name == "cuda" or (name == "auto" and gpus >= ranks_on_host > 0):
        return torch.device("cuda", local_rank)
    return torch.device("cpu")


def choose_threads(threads: int | str, ranks_on_host: int) -> int:
    """Compute threads of a rank: as told, or the cores this process may use divided among the host's ranks."""
    if isinstance(threads, int):
        return threads
    return max(1, cores.usable() // ranks_on_host)


def processor() -> str:
    """The kind of CPU and the instructions that kernels use on it: other ones round otherwise."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}"


def quiet_libraries() -> None:
    """Keep notices of libraries that a user cannot act on off the console; their errors still show."""
    for name in ("torchrec", "torch.fx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)  # TorchRec passes it to DDP
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torchrec|torch\.distributed|torch\.overrides")


def keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next one, instead of giving it back to the system.

    Measured, one rank, batch 2,048: 1,500 page faults a step and 2 to 7 ms in the system of 65, and 200 and 0.4 so.
    Blocks of 32 MiB (glibc's limit) and more are given back all the same, and what lies free behind the last 1 GiB.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl, say, has none
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def arithmetic(precision: str, device: torch.device) -> list[str]:
    """Set how fp32 products are computed on the device, and say when its bf16 will be slow."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    if precision != "bf16":
        return []
    if device.type == "cpu":
        is_fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        is_fast = torch.cuda.is_bf16_supported(including_emulation=False)
    name = processor() if device.type == "cpu" else torch.cuda.get_device_name(device)
    return [] if is_fast else [f"train.precision is bf16, which {name} has no instructions for: fp32 will be faster"]


def _groups_time_out(timeout: timedelta) -> AbstractContextManager[object]:
    """Have every group that is made inside time out as asked: TorchRec makes some, and gives them no time.

    They would have torch's 30 minutes over gloo, and a cut link would be told so late.
    """
    return patch.object(distributed_c10d, "_get_default_timeout", lambda _backend: timeout)


def _check_hosts(here: Session) -> None:
    """Refuse hosts that differ in their ranks: which ranks are on one host would not be known. Collective."""
    sizes = here.gather(here.local_world_size)
    if len(set(sizes)) > 1 or here.world_size % sizes[0]:
        _leave()
        raise UserError(
            f"hosts of {', '.join(map(str, sorted(set(sizes))))} ranks, {here.world_size} in all; allowed: as many on "
            "each host; start them with one --nproc-per-node"
        )


def _leave() -> None:
    """Leave the process group in order. Collective.

    Without the barrier a rank that leaves early aborted others (2 of 5 good runs of 4 ranks).
    """
    dist.barrier()
    dist.destroy_process_group()


@contextmanager
def session(section: RuntimeSection) -> Iterator[Session]:
    """Join the process group, and leave it in order.

    Works under torchrun and without a launcher (then one rank). Collective: every rank must enter it.

    Raises:
        UserError: this host has too few GPUs; hosts have different numbers of ranks.
    """
    quiet_libraries()
    os.environ.setdefault("LOCAL_WORLD_SIZE", "1")  # TorchRec reads it to tell hosts apart
    rank, size, local_size = place.global_rank(), place.world_size(), place.local_world_size()
    device = choose_device(section.device, place.local_rank(), local_size)
    threads = choose_threads(section.threads, local_size)
    torch.set_num_threads(threads)
    keep_freed_memory()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    timeout = timedelta(seconds=section.timeout_s)
    store = tries.store_of_this_try(timeout, rank)
    roll_call = dist.PrefixStore("roll_call", store)
    with lost_ranks.named(roll_call, rank, size, local_size, section.timeout_s):
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
        speaking.ranks_have_met()
        with _groups_time_out(timeout):
            control = dist.new_group(backend="gloo")
            here = Session(rank, size, place.local_rank(), local_size, device, threads, timeout, control, store)
            _check_hosts(here)
            yield here
    _leave()  # only on the good way out: after an exception it would wait for ranks that never come

"""What a rank's memory and arithmetic can do while all ranks of its host do the same."""

from dataclasses import dataclass
from functools import partial

import torch

from dlrm_dist.doctor.timing import own_seconds, slowest
from dlrm_dist.runtime import Session

_COPIED = 64 << 20
_SIDES = (128, 256, 512, 1024, 2048, 4096, 8192)
"""Of the matrices. A CPU without instructions for bf16 takes 13 s for 1,024 where fp32 takes 0.05."""

_LONGEST_CALL = 0.5
"""Seconds that a product may be expected to take; larger ones are left out then."""


@dataclass(frozen=True)
class Speed:
    """Of one rank."""

    memory_gb_s: float
    """Read and written by a copy in the host's memory."""
    device_gb_s: float
    """The same in the GPU's memory; 0 without one."""
    host_link_gb_s: float
    """From pinned memory of the host to the GPU; 0 without one."""
    fp32_tflop_s: float
    bf16_tflop_s: float


def speed(here: Session, lasting: float) -> Speed:
    """This rank's, each figure in about so many seconds. Collective."""
    cpu, on_gpu = torch.device("cpu"), here.device.type == "cuda"
    return Speed(
        memory_gb_s=copy_gb_s(here, cpu, lasting),
        device_gb_s=copy_gb_s(here, here.device, lasting) if on_gpu else 0.0,
        host_link_gb_s=_host_link_gb_s(here, lasting) if on_gpu else 0.0,
        fp32_tflop_s=tflop_s(here, torch.float32, lasting),
        bf16_tflop_s=tflop_s(here, torch.bfloat16, lasting),
    )


def copy_gb_s(here: Session, device: torch.device, lasting: float) -> float:
    """GB/s read and written by a copy. Collective."""
    source = torch.rand(_COPIED // 4, device=device)
    target = torch.empty_like(source)
    return 2 * _COPIED / own_seconds(lambda: target.copy_(source), lasting, here) / 1e9


def tflop_s(here: Session, dtype: torch.dtype, lasting: float) -> float:
    """TFLOP/s of a product of square matrices, the best of several sizes. Collective."""
    found, seconds = 0.0, 0.0
    for side in _SIDES:
        if seconds * 8 > _LONGEST_CALL:
            break
        a, b = (torch.rand(side, side, device=here.device).to(dtype) for _ in range(2))
        took = own_seconds(partial(torch.matmul, a, b), lasting / 4, here)
        found, seconds = max(found, 2 * side**3 / took / 1e12), slowest(took, here)
    return found


def _host_link_gb_s(here: Session, lasting: float) -> float:
    source = torch.empty(_COPIED, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(_COPIED, dtype=torch.uint8, device=here.device)
    return _COPIED / own_seconds(lambda: target.copy_(source, non_blocking=True), lasting, here) / 1e9

"""Ranks on simulated hosts that sum vectors host by host; each writes what it got."""

import sys
from pathlib import Path

import torch

from dlrm_dist.between_hosts import HostSum
from dlrm_dist.runtime import session
from dlrm_dist.sections import RuntimeSection


def main(folder):
    with session(RuntimeSection(device="cpu", timeout_s=60, threads=1)) as here:
        sums = HostSum(here.local_world_size)
        found = []
        for size in (1, 2, 1001):
            values = torch.randn(size, generator=torch.Generator().manual_seed(10 * size + here.global_rank))
            sums.sum(values)
            found.append(values)
        torch.save(found, folder / f"{here.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Sums of gradients host by host: fp32 inside, bf16 between, and the same on all ranks."""

from pathlib import Path

import torch

from dlrm_dist.verify.ranks import run_ranks


def test_sums_host_by_host(tmp_path):
    program = Path(__file__).with_name("between_hosts_program.py")
    run_ranks(program, 4, str(tmp_path), timeout=120, local_world_size=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(4)]
    for number, size in enumerate((1, 2, 1001)):
        given = [torch.randn(size, generator=torch.Generator().manual_seed(10 * size + rank)) for rank in range(4)]
        hosts = [(given[first] + given[first + 1]).bfloat16() for first in (0, 2)]
        expected = (hosts[0].float() + hosts[1].float()).bfloat16().float()
        for rank in range(4):
            assert torch.equal(found[rank][number], expected)

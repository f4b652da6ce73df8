"""The constants of a CPU cluster file, measured on this machine.

    torchrun --nproc_per_node 2 benchmarks/constants.py

All ranks work at the same time, as in training: what they share (memory, cores) counts as each gets it. Medians.
"""

import json

import torch
import torch.distributed as dist
from torchrec.sparse.jagged_tensor import KeyedTensor

from dlrm_dist.doctor.speed import copy_gb_s, tflop_s
from dlrm_dist.doctor.timing import own_seconds, steady_seconds
from dlrm_dist.models.build import build_model
from dlrm_dist.runtime import Session, session
from dlrm_dist.sections import ModelSection, RuntimeSection

GB = 1e9


_LASTING = 0.5
"""Seconds of a measurement, about."""


def dense_tflop_s(batch: int, here: Session) -> float:
    """Forward and backward of the dense layers of the sample model, a rank's share of a batch of 2,048."""
    section = ModelSection(bottom_mlp=(512, 256, 64, 16), top_mlp=(512, 256, 1))
    model = build_model(section, 13, [(f"C{i}", 10) for i in range(26)], 0, torch.device("cpu"))
    dense = torch.rand(batch, 13)
    embedded = KeyedTensor([f"C{i}" for i in range(26)], [16] * 26, torch.rand(batch, 26 * 16, requires_grad=True))

    def step() -> None:
        model.logits(dense, embedded).sum().backward()

    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / own_seconds(step, _LASTING, here) / 1e12


def lookup(rows: int, dim: int, batch: int, here: Session) -> tuple[float, float]:
    """Milliseconds of a fused lookup of 26 tables, and of its backward with row-wise Adagrad."""
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        OptimType,
        SplitTableBatchedEmbeddingBagsCodegen,
    )
    from torchrec.distributed.embedding_lookup import GroupedPooledEmbeddingsLookup  # noqa: F401 - loads the kernels

    kernel = SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, dim, EmbeddingLocation.HOST, ComputeDevice.CPU)] * 26, optimizer=OptimType.EXACT_ROWWISE_ADAGRAD
    )
    ids = torch.randint(rows, (26 * batch,))
    offsets = torch.arange(26 * batch + 1)
    forward = own_seconds(lambda: kernel(ids, offsets), _LASTING, here)

    def step() -> None:
        kernel(ids, offsets).sum().backward()

    return forward * 1e3, (own_seconds(step, _LASTING, here) - forward) * 1e3


def main() -> None:
    with session(RuntimeSection(device="cpu")) as here:
        world_size = here.world_size
        size = 4 << 20
        buffer = torch.zeros(size)
        out = torch.empty_like(buffer)
        small, small_out = torch.rand(world_size), torch.rand(world_size)
        share = (world_size - 1) / world_size
        exchange = steady_seconds(lambda: dist.all_to_all_single(out, buffer), _LASTING, here)
        reduce = steady_seconds(lambda: dist.all_reduce(buffer), _LASTING, here)
        found = {
            "ranks": world_size,
            "threads": here.threads,
            "copy_gb_s": copy_gb_s(here, here.device, _LASTING),
            "all_to_all_gb_s": buffer.nbytes * share / exchange / GB,
            "all_reduce_gb_s": 2 * share * buffer.nbytes / reduce / GB,
            "latency_us": steady_seconds(lambda: dist.all_to_all_single(small_out, small), _LASTING, here) * 1e6,
            "fp32_tflop_s": tflop_s(here, torch.float32, _LASTING),
            "bf16_tflop_s": tflop_s(here, torch.bfloat16, _LASTING),
            "dense_tflop_s": dense_tflop_s(2048 // world_size, here),
        }
        for dim in (16, 128):
            rows, batch = 100_000, 2048
            forward, backward = lookup(rows, dim, batch, here)
            moved = 26 * batch * (8 + 4 * (max(dim, 32) + dim))  # ids, rows, output: as TorchRec's planner counts
            found[f"lookup_ms_d{dim}"] = forward
            found[f"lookup_gb_s_d{dim}"] = moved / forward / 1e6
            found[f"update_ms_d{dim}"] = backward
            found[f"update_over_lookup_d{dim}"] = backward / forward
        if here.is_main:
            print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

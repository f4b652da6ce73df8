"""How fast one core looks up embeddings and updates their tables: one id a bag, the kernels of FBGEMM.

`python benchmarks/embedding.py [--dims 16 64 128] [--batches 2048 16384] [--tables 26] [--rows 100000] [--repeats 15]
[--json]`: lookup, backward and update of all tables, the ids drawn uniformly. "generated" is row-wise Adagrad as FBGEMM
would run it by itself, see `dlrm_dist/cpu_adagrad.py`. Beside it plain `nn.EmbeddingBag(sparse=True)` with torch's SGD.
Each case has a process of its own, so that its peak memory is its own.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import product
from multiprocessing import get_context
from typing import Any, NamedTuple

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice, SplitTableBatchedEmbeddingBagsCodegen
from torch import Tensor, nn

from dlrm_dist.cpu_adagrad import avoid_slow_kernel
from dlrm_dist.runtime import processor

OPTIMIZERS = {
    "sgd": EmbOptimType.EXACT_SGD,
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    "rowwise_adagrad, generated": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
}
PLAIN = "nn.EmbeddingBag, sgd"


class Case(NamedTuple):
    """What is measured."""

    kernel: str
    precision: str
    dim: int
    batch: int
    tables: int
    rows: int
    repeats: int


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Only fp32 tables have a generated kernel, and torch updates no fp16 table from sparse gradients on the CPU."""
    for dim, batch in product(options.dims, options.batches):
        for kernel, precision in [*product(OPTIMIZERS, ("fp32", "fp16")), (PLAIN, "fp32")]:
            if (kernel, precision) != ("rowwise_adagrad, generated", "fp16"):
                yield Case(kernel, precision, dim, batch, options.tables, options.rows, options.repeats)


def fused_step(case: Case) -> Callable[[Tensor, Tensor], None]:
    """One lookup, backward and update by FBGEMM."""
    spec = (case.rows, case.dim, EmbeddingLocation.HOST, ComputeDevice.CPU)
    tables = SplitTableBatchedEmbeddingBagsCodegen(
        [spec] * case.tables,
        optimizer=OPTIMIZERS[case.kernel],
        learning_rate=0.01,
        eps=1e-8,
        weights_precision=SparseType(case.precision),
        output_dtype=SparseType.FP32,
    )
    tables.init_embedding_weights_uniform(-0.01, 0.01)
    if case.kernel == "rowwise_adagrad":
        avoid_slow_kernel([tables])
    offsets = torch.arange(case.tables * case.batch + 1)
    return lambda ids, grad: tables(indices=ids.flatten(), offsets=offsets).backward(grad)


def plain_step(case: Case) -> Callable[[Tensor, Tensor], None]:
    """The same by torch alone."""
    tables = nn.ModuleList(nn.EmbeddingBag(case.rows, case.dim, mode="sum", sparse=True) for _ in range(case.tables))
    optimizer = torch.optim.SGD(tables.parameters(), lr=0.01)
    offsets = torch.arange(case.batch)

    def step(ids: Tensor, grad: Tensor) -> None:
        torch.cat([table(each, offsets) for table, each in zip(tables, ids, strict=True)], 1).backward(grad)
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(case: Case) -> dict[str, Any]:
    """Milliseconds of CPU a step, which neighbours on the machine disturb least, and the process's peak memory."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    step = plain_step(case) if case.kernel == PLAIN else fused_step(case)
    grad = torch.randn(case.batch, case.tables * case.dim, generator=generator)
    times = []
    for _ in range(2 + case.repeats):
        ids = torch.randint(0, case.rows, (case.tables, case.batch), generator=generator)
        started = time.process_time()
        step(ids, grad)
        times.append((time.process_time() - started) * 1e3)
    times = times[2:]  # the first two compile, and fault pages in
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    milliseconds = {"median_ms": statistics.median(times), "min_ms": min(times), "max_ms": max(times)}
    return {**case._asdict(), **milliseconds, "peak_MiB": peak}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dims", type=int, nargs="+", default=[16, 64, 128])
    parser.add_argument("--batches", type=int, nargs="+", default=[2048, 16384])
    parser.add_argument("--tables", type=int, default=26)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        found = pool.map(measure, cases(options), chunksize=1)
    versions = {name: version(name) for name in ("torch", "fbgemm-gpu-cpu")}
    if options.json:
        print(json.dumps({"machine": processor(), "versions": versions, "cases": found}, indent=1))
        return 0
    print(
        "| kernel | tables | D | batch | median CPU ms | least | most | peak MiB |\n|---|---|--:|--:|--:|--:|--:|--:|"
    )
    for each in found:
        times = " | ".join(f"{each[key]:.2f}" for key in ("median_ms", "min_ms", "max_ms"))
        names = " | ".join(str(each[key]) for key in ("kernel", "precision", "dim", "batch"))
        print(f"| {names} | {times} | {each['peak_MiB']:,.0f} |")
    print(f"\n{options.tables} tables of {options.rows:,} rows, one core of {processor()}; {versions}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

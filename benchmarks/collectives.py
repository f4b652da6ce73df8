"""Latency and bandwidth of the collectives that training uses, by size of message.

`torchrun --nproc_per_node 2 benchmarks/collectives.py [--sizes 1024,65536,4194304,67108864] [--threads 1] [--repeats 7]
[--json]`: over gloo, or over NCCL where there is a GPU for each rank. A size is the bytes that a rank holds before an
all-reduce, an all-to-all, a reduce-scatter, and after an all-gather. `GB/s` is that size by the time of the slowest
rank; `bus GB/s` counts what a link must carry at least, as nccl-tests does, to compare numbers of ranks.
"""

import sys
from collections.abc import Callable
from typing import Any

import harness
import torch
import torch.distributed as dist

from dlrm_dist.doctor.links import bus_share
from dlrm_dist.doctor.timing import agreed_seconds
from dlrm_dist.runtime import Session, session
from dlrm_dist.sections import RuntimeSection

_SIZES = tuple(1 << power for power in range(10, 27, 4))
_SECONDS = 0.2
"""Of a repeat, about; a tenth of it with --quick."""


def main() -> int:
    parser = harness.parser(__doc__, repeats=7)
    parser.add_argument("--sizes", default=",".join(map(str, _SIZES)), help="bytes, with commas between")
    parser.add_argument("--threads", type=int, default=1, help="of each rank")
    parser.add_argument("--quick", action="store_true", help="short: does it run? The figures mean little")
    options = parser.parse_args()
    lasting = _SECONDS / 10 if options.quick else _SECONDS
    with session(RuntimeSection(threads=options.threads)) as here:
        rows = [
            row(name, size, spread, here.world_size)
            for size in map(int, options.sizes.split(","))
            for name, spread in measured(size, here, options.repeats, lasting).items()
        ]
        if here.is_main:
            backend = dist.get_backend()
            result = {"backend": backend, "ranks": here.world_size, "hosts": here.world_size // here.local_world_size}
            harness.report(result, rows, options.json, f"{here.world_size} ranks over {backend}")
    return 0


def measured(size: int, here: Session, repeats: int, lasting: float) -> dict[str, dict[str, float]]:
    """Seconds of each collective at a size, on the slowest rank. Collective."""
    ranks = here.world_size
    elements = max(1, size // 4 // ranks) * ranks
    whole, other = torch.rand(elements, device=here.device), torch.empty(elements, device=here.device)
    share = torch.empty(elements // ranks, device=here.device)
    operations: dict[str, Callable[[], Any]] = {
        "all-reduce": lambda: dist.all_reduce(whole, op=dist.ReduceOp.MAX),  # sums would overflow
        "all-to-all": lambda: dist.all_to_all_single(other, whole),
        "reduce-scatter": lambda: dist.reduce_scatter_tensor(share, whole),
        "all-gather": lambda: dist.all_gather_into_tensor(other, share),
    }
    calls = {name: calls_lasting(operation, lasting, here) for name, operation in operations.items()}
    ways = {name: lambda name=name: agreed_seconds(operations[name], calls[name], here) for name in operations}
    return {name: harness.summary(times) for name, times in harness.interleaved(ways, repeats).items()}


def calls_lasting(operation: Callable[[], Any], lasting: float, here: Session) -> int:
    """How many calls take so many seconds, the same on every rank. Collective."""
    agreed_seconds(operation, 3, here)
    return max(3, int(lasting / agreed_seconds(operation, 3, here)))


def row(name: str, size: int, spread: dict[str, float], ranks: int) -> dict[str, Any]:
    """A line of the table."""
    rate = size / spread["median"] / 1e9
    return {
        "collective": name,
        "bytes": size,
        "median us": spread["median"] * 1e6,
        "least us": spread["min"] * 1e6,
        "most us": spread["max"] * 1e6,
        "GB/s": rate,
        "bus GB/s": rate * bus_share(name, ranks),
    }


if __name__ == "__main__":
    sys.exit(main())

"""Scores/s and latency of the sharded model's forward, without gradients, by batch.

`python benchmarks/infer.py [--workload kaggle|kaggle_adagrad|dcnv2] [--batches 1,64,4096,8192] [--ranks 1]
[--threads 2] [--precision bf16] [--repeats 5] [--json]`: batches in memory with uniform ids, one after another, each
waited for. A batch is the global one; a call's time is that of rank 0, whose embeddings come from all ranks.
"""

import json
import sys
import tempfile
import time
from itertools import cycle
from pathlib import Path
from typing import Any

import harness
import torch
import torch.distributed as dist
import workloads
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_dist import config as configs
from dlrm_dist import train
from dlrm_dist.data.batch import ClickBatch
from dlrm_dist.models.shape import ModelShape, model_shape
from dlrm_dist.planning.for_run import machine_at_hand
from dlrm_dist.planning.inputs import planner_of
from dlrm_dist.runtime import Session, session
from dlrm_dist.verify.ranks import RanksFailedError, run_ranks

_DIFFERENT = 16
"""Batches of a size, taken in turns."""
_SECONDS, _CALLS = 1.0, 100
"""Of a repeat, about; at least so many calls, so that a p99 is one of them. A fifth of both with --quick."""


def main() -> int:
    if sys.argv[1:2] == ["rank"]:
        rank(Path(sys.argv[2]), *sys.argv[3:])
        return 0
    parser = harness.parser(__doc__, repeats=5)
    workloads.add_options(parser)
    parser.add_argument("--batches", default="1,64,4096,8192", help="with commas between")
    options = parser.parse_args()
    workload = workloads.chosen(options)
    words = [*workload.model_words(), *workloads.precision_words(options.precision)]
    words += ["--runtime.threads", str(options.threads), "--data.path", "nowhere"]  # the model alone
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "figures.json")
        seconds = str(_SECONDS / 5 if options.quick else _SECONDS)
        try:
            run_ranks(
                Path(__file__),
                options.ranks,
                *("rank", str(out), options.batches, seconds, str(options.repeats)),
                *words,
                timeout=3600,
            )
        except RanksFailedError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        found = json.loads(out.read_text())
    settings = {key: getattr(options, key) for key in ("workload", "ranks", "threads", "precision", "repeats")}
    harness.report({**settings, "peak_MiB": found["peak_MiB"]}, found["rows"], options.json)
    return 0


def rank(out: Path, batches: str, lasting: str, repeats: str, *words: str) -> None:
    """One rank: measure, and on rank 0 write the figures."""
    config = configs.load(words)
    with session(config.runtime) as here:
        shape = model_shape(config.data, config.model)
        machine, _ = machine_at_hand(config.sharding, here.device, here.world_size, here.local_world_size)
        plan = here.from_main(lambda: planner_of(config, None)(machine))
        model = train.build(config, shape, plan, here).model.eval()
        sizes = [int(size) for size in batches.split(",")]
        drawn = {size: [batch(shape, size, number, here) for number in range(_DIFFERENT)] for size in sizes}
        ways = {str(size): lambda size=size: calls(model, drawn[size], float(lasting), here) for size in sizes}
        with torch.no_grad():
            found = harness.interleaved(ways, int(repeats))
        if here.is_main:
            rows = [row(int(size), times) for size, times in found.items()]
            out.write_text(json.dumps({"rows": rows, "peak_MiB": harness.peak_mib()}))


def batch(shape: ModelShape, size: int, number: int, here: Session) -> ClickBatch:
    """A rank's share of a batch; where there are fewer rows than ranks, each rank has one all the same."""
    generator = torch.Generator().manual_seed(1000 * here.global_rank + number)
    rows, features = -(-size // here.world_size), shape.features
    counts = [int(feature.ids_per_sample) for feature in features]
    ids = [
        torch.randint(feature.rows, (rows * count,), generator=generator, dtype=torch.int32)
        for feature, count in zip(features, counts, strict=True)
    ]
    lengths = torch.tensor(counts, dtype=torch.int32).repeat_interleave(rows)
    return ClickBatch(
        dense=torch.rand(rows, shape.num_dense, generator=generator),
        sparse=KeyedJaggedTensor(keys=[feature.name for feature in features], values=torch.cat(ids), lengths=lengths),
        labels=torch.zeros(rows),
        weights=torch.ones(rows),
        loss_scale=torch.tensor(1 / rows),
    ).to(here.device)


def calls(model: torch.nn.Module, batches: list[ClickBatch], lasting: float, here: Session) -> list[float]:
    """Seconds of each of the calls that take `lasting` in all; the same number on every rank. Collective."""
    times: list[float] = []
    stream = cycle(batches)
    for _ in range(3):
        model(next(stream))
    dist.barrier()
    count = 3
    while len(times) < count:
        started = time.perf_counter()
        _, (_, logits, _, _) = model(next(stream))
        logits[0].item()  # waits for the device
        times.append(time.perf_counter() - started)
        if len(times) == 3:
            count = 3 + here.from_main(lambda: int(lasting * max(_CALLS, 1 / min(times))))
    return times[3:]


def row(size: int, times: list[list[float]]) -> dict[str, Any]:
    """A line of the table: medians over the repeats, but for the p99, which is over all calls."""
    spread = harness.summary(size * len(each) / sum(each) for each in times)
    every = torch.tensor([each for some in times for each in some], dtype=torch.float64) * 1e3
    return {
        "batch": size,
        "median scores/s": spread["median"],
        "least": spread["min"],
        "most": spread["max"],
        "p50 ms": every.quantile(0.5).item(),
        "p99 ms": every.quantile(0.99).item(),
        "calls": len(every),
    }


if __name__ == "__main__":
    sys.exit(main())

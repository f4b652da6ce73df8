"""Samples/s of a training step in steady state, from Parquet, beside other ways to do it in the same run.

`python benchmarks/step.py [--workload kaggle|kaggle_adagrad|dcnv2] [--ranks 1] [--threads 2] [--precision bf16]
[--peer-dir CLONE] [--way Parquet --way memory] [--data FOLDER] [--repeats 5] [--json]`. The ways take turns, each time
in new processes:

- `Parquet`: the project's trainer from a synthetic dataset in the page cache: loader, pipeline, fused and dense update,
  reports. Its clock covers whole stripes of the loader, so that each has its share of the reading.
- `memory`: the same with the same batches in memory.
- `plain PyTorch`: the same batches in memory, `nn.EmbeddingBag(sparse=True)` for each table, the same layers; one
  process with as many threads as all ranks have. For row-wise Adagrad, which PyTorch lacks, it has Adagrad.
- `torchrec_dlrm`, with `--peer-dir`: the trainer of a clone of github.com/facebookresearch/dlrm, with its ten random
  batches in memory, in fp32. For row-wise Adagrad, which it lacks, it has Adagrad.

Samples per CPU-second, of rank 0's share by the time of all its threads, are what to look at on a busy machine; with
one thread only, for threads that wait for each other count too.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import workloads
from workloads import Workload

from dlrm_dist.verify.ranks import RanksFailedError, run_ranks

HERE = Path(__file__).resolve().parent
WAYS = PARQUET, MEMORY, PLAIN, PEER = "Parquet", "memory", "plain PyTorch", "torchrec_dlrm"
Figures = dict[str, float]


def main() -> int:
    parser = harness.parser(__doc__, repeats=5)
    workloads.add_options(parser)
    parser.add_argument("--stripes", type=int, default=1, help="length of a measurement, in the loader's stripes")
    parser.add_argument("--data", type=Path, help="where to make the dataset, or where it is from an earlier run")
    parser.add_argument("--peer-dir", type=Path, help="a clone of github.com/facebookresearch/dlrm")
    parser.add_argument("--way", action="append", choices=WAYS, help="repeatable; all but the peer when not given")
    options = parser.parse_args()
    if PEER in (options.way or ()) and not options.peer_dir:
        parser.error(f"--way {PEER} needs --peer-dir, a clone of github.com/facebookresearch/dlrm")
    workload = workloads.chosen(options)
    with tempfile.TemporaryDirectory() as folder:
        data = options.data or Path(folder, "data")
        workload.dataset(data, options.stripes)
        ways = all_ways(workload, options, data, Path(folder))
        try:
            found = harness.interleaved(ways, options.repeats)
        except RanksFailedError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    first = next(iter(found))
    rows = [row(name, figures, first, found[first]) for name, figures in found.items()]
    settings = {key: getattr(options, key) for key in ("workload", "ranks", "threads", "precision", "repeats")}
    measured = f"{workload.steps(options.stripes) - workload.warm_up} steps of {workload.batch:,} samples a measurement"
    harness.report({**settings, "runs": found}, rows, options.json, measured)
    return 0


def all_ways(
    workload: Workload, options: argparse.Namespace, data: Path, folder: Path
) -> dict[str, Callable[[], Figures]]:
    """Each way as something that measures it once."""
    numbers = iter(range(1 << 30))

    def own(way: str, ranks: int, threads: int) -> Figures:
        words = [*workload.model_words(), *workload.train_words(options.stripes)]
        words += [*workloads.precision_words(options.precision), "--data.path", str(data)]
        words += ["--runtime.threads", str(threads), "--checkpoint.every_minutes", "0"]
        words += ["--run.folder", str(folder), "--run.name", f"run{next(numbers)}"]
        return started(HERE / "step_ways.py", ranks, folder, way, words)

    def peer() -> Figures:
        words = [str(options.threads), str(workload.warm_up), str(workload.steps(options.stripes))]
        words += workload.peer_words(options.ranks, options.stripes)
        return started(HERE / "step_peer.py", options.ranks, folder, str(options.peer_dir.resolve()), words)

    ways: dict[str, Callable[[], Figures]] = {
        PARQUET: lambda: own("parquet", options.ranks, options.threads),
        MEMORY: lambda: own("memory", options.ranks, options.threads),
        PLAIN: lambda: own("plain", 1, options.ranks * options.threads),
        PEER: peer,
    }
    chosen = options.way or (WAYS if options.peer_dir else WAYS[:-1])
    return {name: ways[name] for name in chosen}


def started(program: Path, ranks: int, folder: Path, way: str, words: list[str]) -> Figures:
    """The figures that a program leaves, run on so many ranks of this machine."""
    out = folder / "figures.json"
    out.unlink(missing_ok=True)
    run_ranks(program, ranks, way, str(out), *words, timeout=3600)
    figures: Figures = json.loads(out.read_text())
    return figures


def row(name: str, figures: list[Figures], first: str, its_figures: list[Figures]) -> dict[str, Any]:
    """A way's line; its ratio to the first way is the median of those within one turn each."""
    rates = [each["samples_per_s"] for each in figures]
    ratios = [its["samples_per_s"] / rate for its, rate in zip(its_figures, rates, strict=True)]
    spread = harness.summary(rates)
    return {
        "way": name,
        "median samples/s": spread["median"],
        "least": spread["min"],
        "most": spread["max"],
        f"{first}'s rate over it": statistics.median(ratios),
        "samples per CPU-s of a rank": statistics.median(each["samples_per_cpu_s"] for each in figures),
        "peak MiB of rank 0": statistics.median(each["peak_MiB"] for each in figures),
    }


if __name__ == "__main__":
    sys.exit(main())

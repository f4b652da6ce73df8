"""How long plans take: `plan make` for MLPerf's tables at several sizes, and the start-up of `plan explain`.

    python benchmarks/plan.py [--sizes 1x8,16x8,128x8] [--repeats 3] [--json FILE]

Each measurement is a process of its own, as a user starts it; TorchRec's planner is timed apart inside it.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "launch/configs/mlperf_dcnv2.toml"

MAKE = """
import sys, time
from torchrec.distributed.planner import EmbeddingShardingPlanner
from dlrm_dist import cli
plan, spent = EmbeddingShardingPlanner.plan, []
def timed(self, *arguments):
    started = time.perf_counter()
    try:
        return plan(self, *arguments)
    finally:
        spent.append(time.perf_counter() - started)
EmbeddingShardingPlanner.plan = timed
code = cli.main(sys.argv[1:])
print("planner", sum(spent), file=sys.stderr)
sys.exit(code)
"""


def timed(words: list[str]) -> tuple[float, float, str]:
    """Seconds and peak MiB of a process, and what it wrote to stderr."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    started = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return seconds, (peak if peak > before else before) / 1024, done.stderr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1x8,16x8,128x8")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "a.plan.json"
        for size in options.sizes.split(","):
            words = ["plan", "make", "--config", str(CONFIG), "--cluster", f"h100:{size}", "--out", str(out)]
            runs = [timed([sys.executable, "-c", MAKE, *words]) for _ in range(options.repeats)]
            planner = [float(stderr.split()[-1]) for *_, stderr in runs]
            rows.append(row(f"plan make h100:{size}", runs) | {"planner_s": median(planner)})
            explain = [sys.executable, "-m", "dlrm_dist.cli", "plan", "explain", str(out)]
            rows.append(row(f"plan explain h100:{size}", [timed(explain) for _ in range(options.repeats)]))
    print(f"{'command':<28} {'median s':>9} {'min':>7} {'max':>7} {'planner s':>10} {'peak MiB so far':>16}")
    for each in rows:
        planner = f"{each['planner_s']:.2f}" if "planner_s" in each else ""
        print(
            f"{each['command']:<28} {each['median_s']:>9.2f} {each['min_s']:>7.2f} {each['max_s']:>7.2f} {planner:>10} "
            f"{each['peak_mib']:>16.0f}"
        )
    if options.json:
        options.json.write_text(json.dumps({"python": platform.python_version(), "rows": rows}, indent=1) + "\n")


def row(command: str, runs: list[tuple[float, float, str]]) -> dict[str, float | str]:
    seconds = [each[0] for each in runs]
    return {
        "command": command,
        "median_s": median(seconds),
        "min_s": min(seconds),
        "max_s": max(seconds),
        "peak_mib": max(each[1] for each in runs),
    }


if __name__ == "__main__":
    main()

"""Checkpoints of 1, 2, 4 and 8 ranks under five plans, each loaded by each: 400 pairs for each optimizer.

`python benchmarks/checkpoint_matrix.py [--optimizers adagrad,rowwise_adagrad] [--json]`. Weights and optimizer state
must be equal, the next three losses to 1e-6; a pair may be refused only where row-wise Adagrad meets tables cut by
columns. Exit code 1 if a pair fails.
"""

import argparse
import json
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

from dlrm_dist.verify import moves
from dlrm_dist.verify.ranks import run_ranks

WORLD_SIZES = (1, 2, 4, 8)
PLANS = ("table_wise", "row_wise", "column_wise", "table_row_wise", "data_parallel")
Pair = tuple[tuple[int, str], tuple[int, str]]
"""(World size, plan) that saves, and that loads."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--optimizers", default="adagrad,rowwise_adagrad")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    places = list(product(WORLD_SIZES, PLANS))
    results = {}
    for optimizer in options.optimizers.split(","):
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            results[optimizer] = run(list(product(places, places)), optimizer, Path(folder))
        if not options.json:
            print(f"{optimizer}: {summary(results[optimizer])}; {time.monotonic() - started:.0f} s", flush=True)
    if options.json:
        print(json.dumps(results, indent=1))
    bad = [each for found in results.values() for each in found if each["problem"]]
    for each in bad[:20]:
        print(each, file=sys.stderr)
    return 1 if bad else 0


def run(pairs: list[Pair], optimizer: str, folder: Path) -> list[dict[str, Any]]:
    """Each pair's figures, and its `problem`, if it has one."""
    for size in sorted({saver[0] for saver, _ in pairs}):
        saves = sorted({saver[1] for saver, _ in pairs if saver[0] == size})
        _ranks(folder, size, "save", {"saves": saves, "optimizer": optimizer})
    found = []
    for size in sorted({loader[0] for _, loader in pairs}):
        loads = [(f"{saver[0]}-{saver[1]}", loader[1]) for saver, loader in pairs if loader[0] == size]
        out = _ranks(folder, size, "load", {"loads": loads, "optimizer": optimizer})
        found += [{**each, "ranks": size, "problem": problem(each, optimizer)} for each in json.loads(out.read_text())]
    return found


def problem(each: dict[str, Any], optimizer: str) -> str | None:
    """What is wrong with what became of a pair, if anything is."""
    if "refused" in each:
        by_columns = "column_wise" in each["from"] or "column_wise" in each["under"]
        return None if by_columns and optimizer == "rowwise_adagrad" else "refused"
    if each["missing"] or not each["tensors"]:
        return "tensors are missing"
    if each["state"] > 0:
        return "the state differs"
    if not each["losses"] <= 1e-6:
        return "the losses differ"
    return None if each["learned"] > 1e-4 else "the losses do not move"


def summary(found: list[dict[str, Any]]) -> str:
    """In one line."""
    equal = [each for each in found if "refused" not in each and not each["problem"]]
    refused = sum("refused" in each and not each["problem"] for each in found)
    largest = max((each["losses"] for each in equal), default=0.0)
    return (
        f"{len(found)} pairs: {len(equal)} equal (state 0, next losses to {largest:.1e}), {refused} refused by name, "
        f"{sum(bool(each['problem']) for each in found)} wrong"
    )


def _ranks(folder: Path, size: int, what: str, values: dict[str, Any]) -> Path:
    jobs = folder / f"{what}{size}.json"
    jobs.write_text(json.dumps({"folder": str(folder), **values}))
    run_ranks(Path(moves.__file__), size, str(jobs), timeout=900)
    return jobs.with_suffix(".out.json")


if __name__ == "__main__":
    sys.exit(main())

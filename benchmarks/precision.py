"""What bf16 dense layers change in a model's quality: AUC and log loss beside fp32, over seeds.

`python benchmarks/precision.py [--config launch/configs/demo.toml] [--seeds 3] [--ranks 1] [--json] [-- KEYS]`:
the config is trained with each precision and each seed, everything else alike; what follows `--` goes to
launch/train.py.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from trained import ROOT, result_of, train

PRECISIONS = ("fp32", "bf16")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default=str(ROOT / "launch/configs/demo.toml"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("rest", nargs="*")
    options = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {precision: [] for precision in PRECISIONS}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            for precision in PRECISIONS:
                words = ["--train.seed", str(seed), "--train.precision", precision, *options.rest]
                run = train(Path(folder), options.ranks, "--config", options.config, *words)
                found[precision].append(result_of(run))
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    print("| precision | mean AUC | each | mean log loss | samples/s |\n|---|---|---|---|---|")
    for precision, runs in found.items():
        means = {key: statistics.mean(run[key] for run in runs) for key in ("auc", "log_loss", "samples_per_s")}
        each = " ".join(f"{run['auc']:.5f}" for run in runs)
        print(
            f"| {precision} | {means['auc']:.5f} | {each} | {means['log_loss']:.5f} | {means['samples_per_s']:,.0f} |"
        )
    differences = [b["auc"] - a["auc"] for a, b in zip(*found.values(), strict=True)]
    print(f"\nbf16 - fp32, mean over seeds: {statistics.mean(differences):+.5f} AUC")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What lower precision changes in a model's quality: AUC and log loss of each value of a key, over seeds.

`python benchmarks/precision.py [--config launch/configs/demo.toml] [--key train.precision] [--value fp32 --value bf16]
[--seeds 3] [--ranks 1] [--json] [-- KEYS]`: the config is trained with each value and each seed, everything else alike;
the first value is what the others are compared with. `--key sharding.comm_precision` wants two ranks, `--key
model.table_precision` knows fp16. What follows `--` goes to launch/train.py.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from trained import ROOT, result_of, train

VALUES = ["fp32", "bf16"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default=str(ROOT / "launch/configs/demo.toml"))
    parser.add_argument("--key", default="train.precision", help="of the config")
    parser.add_argument("--value", action="append", help="repeatable; fp32 and bf16 when not given")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("rest", nargs="*")
    options = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {value: [] for value in options.value or VALUES}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            for value in found:
                words = ["--train.seed", str(seed), f"--{options.key}", value, *options.rest]
                run = train(Path(folder), options.ranks, "--config", options.config, *words)
                found[value].append(result_of(run))
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    print(f"| {options.key} | mean AUC | each | mean log loss | samples/s |\n|---|---|---|---|---|")
    for value, runs in found.items():
        means = {key: statistics.mean(run[key] for run in runs) for key in ("auc", "log_loss", "samples_per_s")}
        each = " ".join(f"{run['auc']:.5f}" for run in runs)
        print(f"| {value} | {means['auc']:.5f} | {each} | {means['log_loss']:.5f} | {means['samples_per_s']:,.0f} |")
    first, *others = found
    for value in others:
        differences = [b["auc"] - a["auc"] for a, b in zip(found[first], found[value], strict=True)]
        print(f"\n{value} - {first}, mean over seeds: {statistics.mean(differences):+.5f} AUC")
    return 0


if __name__ == "__main__":
    sys.exit(main())

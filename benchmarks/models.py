"""How near each model comes to the best AUC that planted clicks allow.

`python benchmarks/models.py [--rows 8000000] [--seeds 3] [--ranks 1] [--model NAME ...] [--split test] [--work FOLDER]
[--json]`: every model is trained on the same rows, once, with the same loop. What follows a `--` goes to
launch/train.py.
"""

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from trained import ROOT, result_of, train

from dlrm_dist.data.options import PrepareOptions
from dlrm_dist.data.prepare import prepare
from dlrm_dist.data.synthetic import write_clicks

BATCH = 1024
HELD_OUT = 100_000
"""Rows of `valid`, by which the settings were chosen, and of `test`, which is scored."""
ONE_SPACE, OF_EACH = "one id space", "an id space each"
IDS = {
    OF_EACH: PrepareOptions("kaggle", min_count=5),
    ONE_SPACE: PrepareOptions("kaggle", ids="hash", hash_rows=1_000_001),
}
"""PaddleRec's table needs the ids of all categories in one space, as its data have them."""
MODELS = {
    "dlrm": (".03", ".003", ()),
    "dlrm_dcnv2": (".03", ".003", ("--model.cross_rank", "64")),
    "dlrm_projection": (
        *(".03", ".005"),
        ("--model.projection_branch1", "256,128", "--model.projection_branch2", "256,128"),
    ),
    "dcn": (".1", ".002", ("--model.deep_mlp", "256,128")),
    "dcn of matrices": (".03", ".003", ("--model.cross", "matrix")),
    "paddlerec": (".1", ".003", ("--model.top_mlp", "128,64,2")),
}
"""The learning rates of tables (Adagrad) and layers (Adam), and what differs from the default shape: embeddings of 16,
MLPs 64-16 and 128-64, a cross network of 3 layers."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=8_000_000, help="to train on")
    parser.add_argument("--seeds", type=int, default=3, help="of the training, from 0")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--model", action="append", choices=tuple(MODELS), help="only this; may be given again")
    parser.add_argument("--work", type=Path, help="where the clicks are made, or lie already; a temporary folder else")
    parser.add_argument("--split", choices=("valid", "test"), default="test", help="which is scored")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("rest", nargs="*")
    options = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {}
    if not options.json:
        print(
            "| model | AUC, mean | best reachable | below it, mean (least to most) | log loss |\n|---|---|---|---|---|"
        )
    with tempfile.TemporaryDirectory() as temporary:
        work, runs = options.work or Path(temporary, "data"), Path(temporary, "runs")
        for name in options.model or MODELS:
            found[name] = [run(name, seed, work, runs, options) for seed in range(options.seeds)]
            if not options.json:
                print(line(name, found[name]), flush=True)
    if options.json:
        print(json.dumps(found, indent=1))
    return 0


def line(name: str, results: list[dict[str, Any]]) -> str:
    """A model's line of the table."""
    auc, loss = (statistics.mean(each[key] for each in results) for key in ("auc", "log_loss"))
    best = results[0]["best_reachable_auc"]
    below = [best - each["auc"] for each in results]
    spread = f"{best - auc:.4f} ({min(below):.4f} to {max(below):.4f})"
    return f"| {name} | {auc:.4f} | {best:.4f} | {spread} | {loss:.4f} |"


def run(name: str, seed: int, work: Path, runs: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The result.json of one model with one seed."""
    data = dataset(work, ONE_SPACE if name == "paddlerec" else OF_EACH, options.rows)
    steps = -(-options.rows // BATCH)
    of_tables, of_layers, shape = MODELS[name]
    words = [
        *("--data.path", str(data), "--model.name", name.partition(" ")[0], *shape, "--train.seed", str(seed)),
        *("--optimizer.sparse", "adagrad", "--optimizer.sparse_learning_rate", of_tables),
        *("--optimizer.dense", "adam", "--optimizer.dense_learning_rate", of_layers),
        *("--train.epochs", "1", "--train.batch_size", str(BATCH), "--eval.split", options.split),
        *("--schedule.decay", "polynomial", "--schedule.start", str(steps * 2 // 3)),
        *("--checkpoint.every_minutes", "0", *options.rest),
    ]
    return result_of(train(runs, options.ranks, "--config", str(ROOT / "launch/configs/demo.toml"), *words))


def dataset(work: Path, ids: str, rows: int) -> Path:
    """The planted clicks with ids of that kind; raw rows and datasets are made unless they are there."""
    data = work / f"{ids.replace(' ', '_')}_{rows}"
    if (data / "dataset.json").exists():
        return data
    work.mkdir(parents=True, exist_ok=True)
    counts = {"train": rows, "valid": HELD_OUT, "test": HELD_OUT}
    files = {split: work / f"{split}_{count}.tsv" for split, count in counts.items()}
    best = {
        split: write_clicks(file, counts[split], seed=seed).best_auc for seed, (split, file) in enumerate(files.items())
    }
    prepare([files["train"]], data, replace(IDS[ids], valid=(files["valid"],), test=(files["test"],)), best_auc=best)
    return data


if __name__ == "__main__":
    sys.exit(main())

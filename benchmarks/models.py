"""How near each model comes to the best AUC that planted clicks allow, and how fast it trains.

`python benchmarks/models.py [--rows 1200000] [--epochs 2] [--seed 0] [--ranks 1] [--model NAME ...] [--split test]
[--work FOLDER] [--json]`: every model is trained on the same rows with the same loop; what follows a `--` goes to
launch/train.py.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from trained import ROOT, result_of, train

from dlrm_dist.data.law import Law
from dlrm_dist.data.options import PrepareOptions
from dlrm_dist.data.prepare import prepare
from dlrm_dist.data.synthetic import write_clicks

BATCH = 1024
HELD_OUT = 100_000
"""Rows of `valid`, by which the settings were chosen, and of `test`, which is scored."""
LAW = Law((*(8,) * 9, *(400, 3, 6, 4, 5, 7, 3, 600, 5, 4, 6, 7, 3, 5, 4, 6, 7)))
"""Nine categories of 8 ids carry the signal, so that each pair of ids is seen 3,000 times. A network without
products of embeddings has to learn a pairwise effect pair by pair; of the default law's ids most pairs are too rare."""
ONE_SPACE, OF_EACH = "one id space", "an id space each"
IDS = {
    OF_EACH: PrepareOptions("kaggle", min_count=5),
    ONE_SPACE: PrepareOptions("kaggle", ids="hash", hash_rows=1_000_001),
}
"""PaddleRec's table needs the ids of all categories in one space, as its data have them."""
MODELS = {
    "dlrm": (".03", ".003", ()),
    "dlrm_dcnv2": (".03", ".003", ("--model.cross_rank", "64")),
    "dlrm_projection": (".03", ".003", ()),
    "dcn": (".03", ".003", ("--model.deep_mlp", "256,128")),
    "dcn of matrices": (".03", ".003", ("--model.cross", "matrix")),
    "paddlerec": (".1", ".003", ("--model.top_mlp", "128,64,2")),
}
"""The learning rates of tables (Adagrad) and layers (Adam), and what differs from the default shape: embeddings of 16,
MLPs 64-16 and 128-64, a cross network of 3 layers. PaddleRec's tables begin at a deviation of 1: larger steps."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_200_000, help="to train on")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--model", action="append", choices=tuple(MODELS), help="only this; may be given again")
    parser.add_argument("--work", type=Path, help="where the clicks are made, or lie already; a temporary folder else")
    parser.add_argument("--split", choices=("valid", "test"), default="test", help="which is scored")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("rest", nargs="*")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        found = {name: run(name, work, Path(temporary, "runs"), options) for name in options.model or MODELS}
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    print("| model | AUC | best reachable | below it | log loss | samples/s |\n|---|---|---|---|---|---|")
    for name, result in found.items():
        best = result["best_reachable_auc"]
        print(
            f"| {name} | {result['auc']:.4f} | {best:.4f} | {best - result['auc']:.4f} | {result['log_loss']:.4f} "
            f"| {result['samples_per_s']:,.0f} |"
        )
    return 0


def run(name: str, work: Path, runs: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One model's result.json."""
    runs.mkdir(exist_ok=True)
    data = dataset(work, ONE_SPACE if name == "paddlerec" else OF_EACH, options.rows)
    steps = options.epochs * -(-options.rows // BATCH)
    of_tables, of_layers, shape = MODELS[name]
    words = [
        *("--data.path", str(data), "--model.name", name.partition(" ")[0], *shape, "--train.seed", str(options.seed)),
        *("--optimizer.sparse", "adagrad", "--optimizer.sparse_learning_rate", of_tables),
        *("--optimizer.dense", "adam", "--optimizer.dense_learning_rate", of_layers),
        *("--train.epochs", str(options.epochs), "--train.batch_size", str(BATCH), "--eval.split", options.split),
        *("--schedule.decay", "polynomial", "--schedule.start", str(steps // 3)),
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
        split: write_clicks(file, counts[split], seed=seed, law=LAW).best_auc
        for seed, (split, file) in enumerate(files.items())
    }
    prepare([files["train"]], data, replace(IDS[ids], valid=(files["valid"],), test=(files["test"],)), best_auc=best)
    return data


if __name__ == "__main__":
    sys.exit(main())

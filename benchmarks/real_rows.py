"""Every model and optimizer on real rows, and gradient-boosted trees on the same columns.

`python benchmarks/real_rows.py --data DATASET --tune DATASET [--config launch/configs/criteo_sample.toml]
[--model NAME ...] [--optimizer NAME ...] [--seeds 3] [--trees] [--json]`: trains the config with each model and each
optimizer of tables and layers, `--seeds` times, and scores the valid split of `--data`. The learning rates are those
with the least log loss on the valid split of `--tune`, training rows held out, with the first seed. `--trees` has
LightGBM (package lightgbm) learn the same rows and columns. What follows `--` goes to launch/train.py.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from trained import ROOT, DivergedError, result_of, train

from dlrm_dist.data.schema import LABEL, DatasetInfo, read_info

MODELS: dict[str, tuple[str, ...]] = {
    "dlrm": (),
    "dlrm_dcnv2": ("--model.cross_rank", "64"),
    "dlrm_projection": (
        *("--model.projection_branch1", "128,128", "--model.projection_branch2", "128,128"),
        *("--model.top_mlp", "256,1"),
    ),
    "dcn": ("--model.deep_mlp", "512,256"),
    "dcn of matrices": ("--model.cross", "matrix", "--model.deep_mlp", "512,256"),
    "paddlerec": ("--model.top_mlp", "512,256,2"),
}
OPTIMIZERS: dict[str, tuple[str, str, tuple[tuple[str, str], ...]]] = {
    "sgd": ("sgd", "sgd", (("0.1", "0.1"), ("1", "0.1"), ("1", "0.03"), ("1", "0.01"))),
    "adagrad": ("adagrad", "adagrad", (("0.04", "0.01"), ("0.02", "0.01"), ("0.04", "0.005"))),
    "rowwise_adagrad": ("rowwise_adagrad", "adagrad", (("0.02", "0.01"), ("0.04", "0.01"), ("0.02", "0.005"))),
    "adam": ("adam", "adam", (("0.001", "0.001"), ("0.0005", "0.001"), ("0.001", "0.0005"))),
}
"""Of tables and of layers, and the learning rates of both to choose from. Adam's tables are data-parallel: it has no
fused kernel on CPU."""
PADDLEREC_RATES = {
    "sgd": (("1", "0.1"), ("1", "1"), ("0.1", "0.1")),
    "adagrad": (("0.04", "0.1"), ("0.1", "0.1"), ("0.1", "0.03")),
    "rowwise_adagrad": (("0.04", "0.1"), ("0.1", "0.1"), ("0.1", "0.03")),
    "adam": (("0.01", "0.01"), ("0.01", "0.001"), ("0.001", "0.01")),
}
"""Its logits are normalised to a deviation of 1, its embeddings begin at 1: both want larger steps."""
Rows = tuple[Any, Any]
"""Features [rows, columns] and labels [rows]."""
METRICS = ("auc", "log_loss")
TREES = {"objective": "binary", "learning_rate": 0.03, "bagging_fraction": 0.8, "bagging_freq": 1, "verbose": -1}
TREE_CHOICES: dict[str, dict[str, Any]] = {
    "ids as numbers, 63 leaves": {"num_leaves": 63, "min_data_in_leaf": 40, "feature_fraction": 0.3},
    "ids as numbers, 31 leaves": {"num_leaves": 31, "min_data_in_leaf": 100, "feature_fraction": 0.2},
    "ids as numbers, 15 leaves": {"num_leaves": 15, "min_data_in_leaf": 100, "feature_fraction": 0.2},
    "categories": {"num_leaves": 63, "cat_smooth": 50, "min_data_per_group": 50, "feature_fraction": 0.6},
    "categories, smoothed": {"num_leaves": 31, "cat_smooth": 200, "cat_l2": 200, "min_data_per_group": 200},
}
"""Ids are in order of their counts, so as numbers they split the frequent from the rare."""
THREADS_OF_TREES = 1
"""On two busy cores two threads that wait for each other took 165 s for what one does in 5."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tune", type=Path, required=True, help="training rows of --data, cut into train and valid")
    parser.add_argument("--config", default=str(ROOT / "launch/configs/criteo_sample.toml"))
    parser.add_argument("--model", action="append", choices=tuple(MODELS))
    parser.add_argument("--optimizer", action="append", choices=tuple(OPTIMIZERS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trees", action="store_true", help="LightGBM too")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("rest", nargs="*")
    options = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    show("model, optimizer", "learning rates of tables, layers", ("AUC", "log loss (least to most)"), options.json)
    show("---", "---", ("---", "---"), options.json)
    with tempfile.TemporaryDirectory() as folder:
        for model in options.model or MODELS:
            for optimizer in options.optimizer or OPTIMIZERS:
                name = f"{model}, {optimizer}"
                found[name] = learned(Path(folder), options, model, optimizer)
                show(name, ", ".join(found[name]["rates"]), cells(found[name]["runs"]), options.json)
    if options.trees:
        runs = [trees(options.data, seed) for seed in range(options.seeds)]
        found["LightGBM"] = {"runs": runs}
        show("LightGBM", "; ".join({each["settings"] for each in runs}), cells(runs), options.json)
    if options.json:
        print(json.dumps(found, indent=1))
    return 0


def learned(folder: Path, options: argparse.Namespace, model: str, optimizer: str) -> dict[str, Any]:
    """The learning rates that were chosen, what each of them reached on held-out rows, and the runs with the chosen."""
    tried: dict[tuple[str, str], float] = {}
    for rates in PADDLEREC_RATES[optimizer] if model == "paddlerec" else OPTIMIZERS[optimizer][2]:
        try:
            tried[rates] = one(folder, options, options.tune, model, optimizer, rates, 0)["log_loss"]
        except DivergedError:
            tried[rates] = math.inf
    chosen = min(tried, key=lambda rates: tried[rates])
    runs = [one(folder, options, options.data, model, optimizer, chosen, seed) for seed in range(options.seeds)]
    held_out = {", ".join(rates): loss for rates, loss in tried.items()}
    return {"rates": chosen, "log_loss of held-out rows": held_out, "runs": runs}


def one(
    folder: Path,
    options: argparse.Namespace,
    data: Path,
    model: str,
    optimizer: str,
    rates: tuple[str, str],
    seed: int,
) -> dict[str, Any]:
    """A run's result."""
    sparse, dense, _ = OPTIMIZERS[optimizer]
    words = ["--config", options.config, "--data.path", str(data)]
    words += ["--model.name", model.partition(" ")[0], *MODELS[model]]
    words += ["--optimizer.sparse", sparse, "--optimizer.dense", dense, "--train.seed", str(seed)]
    words += ["--optimizer.sparse_learning_rate", rates[0], "--optimizer.dense_learning_rate", rates[1]]
    words += ["--sharding.types", "data_parallel"] if sparse == "adam" else []
    return result_of(train(folder, 1, *words, "--checkpoint.every_minutes", "0", *options.rest))


def show(name: str, rates: str, figures: tuple[str, ...], quiet: bool) -> None:
    """A line of the table."""
    if not quiet:
        print(f"| {name} | {rates} | {' | '.join(figures)} |", flush=True)


def cells(runs: list[dict[str, Any]]) -> tuple[str, ...]:
    """Mean, least and most of each metric."""
    values = {key: [each[key] for each in runs] for key in METRICS}
    return tuple(f"{statistics.mean(each):.4f} ({min(each):.4f} to {max(each):.4f})" for each in values.values())


def trees(data: Path, seed: int) -> dict[str, Any]:
    """LightGBM's scores: the settings and the number of trees by the last sixth of the training rows."""
    from sklearn.metrics import log_loss, roc_auc_score

    info = read_info(data)
    columns = [*info.dense, *(each.name for each in info.categories)]
    rows, clicks = table(data, info, "train", columns)
    cut = len(rows) * 5 // 6
    held_out = (rows[cut:], clicks[cut:])

    def tried(choice: str) -> tuple[float, int, str]:
        model = grown(settings_of(choice, seed), (rows[:cut], clicks[:cut]), len(info.dense), 2000, held_out)
        return roc_auc_score(held_out[1], model.predict(held_out[0])), model.best_iteration, choice

    _, rounds, choice = max(map(tried, TREE_CHOICES))
    scored, labels = table(data, info, "valid", columns)
    model = grown(settings_of(choice, seed), (rows, clicks), len(info.dense), rounds * 6 // 5)
    scores = model.predict(scored)
    found = {"auc": roc_auc_score(labels, scores), "log_loss": log_loss(labels, scores)}
    return {**found, "rounds": rounds, "settings": choice}


def settings_of(choice: str, seed: int) -> dict[str, Any]:
    """LightGBM's parameters."""
    return {**TREES, **TREE_CHOICES[choice], "seed": seed, "num_threads": THREADS_OF_TREES}


def grown(settings: dict[str, Any], rows: Rows, num_dense: int, rounds: int, valid: Rows | None = None) -> Any:
    """A LightGBM model of so many trees, or as many as serve the `valid` rows best."""
    import lightgbm

    categories = list(range(num_dense, rows[0].shape[1])) if "cat_smooth" in settings else []
    data = lightgbm.Dataset(*rows, categorical_feature=categories, free_raw_data=False)
    sets = [lightgbm.Dataset(*valid, reference=data)] if valid else []
    stop = [lightgbm.early_stopping(50, verbose=False)] if valid else []
    return lightgbm.train(settings, data, rounds, valid_sets=sets, callbacks=stop)


def table(data: Path, info: DatasetInfo, split: str, columns: list[str]) -> tuple[Any, Any]:
    """A split's columns, float64 [rows, columns], and its labels."""
    parts = pa.concat_tables([pq.read_table(data / part) for part in info.splits[split].parts])
    return np.column_stack([parts[name].to_numpy() for name in columns]).astype(np.float64), parts[LABEL].to_numpy()


if __name__ == "__main__":
    sys.exit(main())

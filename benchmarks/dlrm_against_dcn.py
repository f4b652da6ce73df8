"""The experiment of the DLRM paper (Naumov et al., arXiv 1906.00091, section 5.1): DLRM against DCN, without tuning.

`python benchmarks/dlrm_against_dcn.py [--out FOLDER] [--config launch/configs/paper_dlrm.toml --config
launch/configs/paper_dcn.toml] [--seeds 1] [--ranks 1] [-- KEYS]`: trains each config once a seed on the same rows in
the same order, and writes into FOLDER `curves.png`, accuracy and AUC against samples for training and validation, and
the numbers, `curves.json`; a line is the mean over seeds. What follows `--` goes to launch/train.py, such as
`--data.path data/criteo_kaggle`.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib
from trained import ROOT, reports_of, result_of, train

matplotlib.use("Agg")
from matplotlib import pyplot

CONFIGS = [str(ROOT / f"launch/configs/{name}.toml") for name in ("paper_dlrm", "paper_dcn")]
METRICS = ("accuracy", "auc")
SPLITS = ("train", "valid")
Curves = dict[str, dict[str, list[dict[str, float]]]]
"""By config and split, a point for each number of samples: means over seeds."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("dlrm_against_dcn"), help="folder for curves.png and .json")
    parser.add_argument("--config", action="append", help="repeatable; the paper's two when not given")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("rest", nargs="*", help="for launch/train.py, behind --")
    options = parser.parse_args()
    curves: Curves = {}
    print("| config | accuracy | AUC | log loss, mean over seeds |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for config in options.config or CONFIGS:
            name = Path(config).stem
            runs = [
                train(Path(folder, name), options.ranks, "--config", config, *options.rest, "--train.seed", str(seed))
                for seed in range(options.seeds)
            ]
            curves[name] = {split: mean_points([reports_of(run, split) for run in runs]) for split in SPLITS}
            results = [result_of(run) for run in runs]
            means = [statistics.mean(each[key] for each in results) for key in ("accuracy", "auc", "log_loss")]
            print(f"| {name} | " + " | ".join(f"{each:.5f}" for each in means) + " |", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "curves.json").write_text(json.dumps(curves, indent=1) + "\n")
    draw(curves, options.out / "curves.png")
    print(f"\n{options.out / 'curves.png'}, {options.out / 'curves.json'}")
    return 0


def mean_points(runs: list[list[dict[str, Any]]]) -> list[dict[str, float]]:
    """The runs' reports at equal numbers of samples, as means."""
    return [
        {
            "samples": reports[0]["samples"],
            **{key: statistics.mean(each[key] for each in reports) for key in METRICS},
        }
        for reports in zip(*runs, strict=True)
    ]


def draw(curves: Curves, path: Path) -> None:
    """A picture a metric, a line a config and split."""
    figure, places = pyplot.subplots(1, len(METRICS), figsize=(13, 5), layout="constrained")
    for place, metric in zip(places, METRICS, strict=True):
        for number, (name, splits) in enumerate(curves.items()):
            for split, style in zip(SPLITS, (":", "-"), strict=True):
                points = splits[split]
                marker = "o" if len(points) < 30 else ""
                place.plot(
                    [each["samples"] for each in points],
                    [each[metric] for each in points],
                    color=f"C{number}",
                    linestyle=style,
                    marker=marker,
                    markersize=3,
                    label=f"{name}, {'training' if split == 'train' else 'validation'}",
                )
        place.set_xlabel("samples")
        place.set_ylabel(metric.upper() if metric == "auc" else metric)
        place.grid(alpha=0.3)
        place.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())

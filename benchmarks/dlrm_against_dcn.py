"""The experiment of the DLRM paper (Naumov et al., arXiv 1906.00091, section 5.1): DLRM against DCN, without tuning.

`python benchmarks/dlrm_against_dcn.py [--out FOLDER] [--config launch/configs/paper_dlrm.toml --config
launch/configs/paper_dcn.toml] [--seeds 1] [--ranks 1] [-- KEYS]`: trains each config once a seed on the same rows in
the same order, and writes into FOLDER `curves.png`, accuracy and AUC against samples for training and validation, and
the numbers, `curves.json`; a line is the mean over seeds. What follows `--` goes to launch/train.py, such as
`--data.path data/criteo_kaggle`. Both files are written anew after each config, so that nothing is lost if the next one
diverges. Exit code 1 if one did, 2 for a mistake in the command.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib
from trained import ROOT, DivergedError, reports_of, result_of, train

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
    configs = [Path(each) for each in options.config or CONFIGS]
    mistake = _mistake(configs, options.seeds, options.ranks, options.out)
    if mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    curves: Curves = {}
    print("| config | accuracy | AUC | log loss, mean over seeds |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for config in configs:
            runs = []
            for seed in range(options.seeds):
                words = ["--config", str(config), *options.rest, "--train.seed", str(seed)]
                try:
                    runs.append(train(Path(folder, config.stem), options.ranks, *words))
                except DivergedError:
                    print(
                        f"error: {config}, seed {seed}: the loss is not finite, the run has diverged; lower "
                        "train.learning_rate there",
                        file=sys.stderr,
                    )
                    return 1
            curves[config.stem] = {split: mean_points([reports_of(run, split) for run in runs]) for split in SPLITS}
            results = [result_of(run) for run in runs]
            means = [statistics.mean(each[key] for each in results) for key in ("accuracy", "auc", "log_loss")]
            print(f"| {config.stem} | " + " | ".join(f"{each:.5f}" for each in means) + " |", flush=True)
            (options.out / "curves.json").write_text(json.dumps(curves, indent=1) + "\n")
            draw(curves, options.out / "curves.png")
    print(f"\n{options.out / 'curves.png'}, {options.out / 'curves.json'}")
    return 0


def _mistake(configs: list[Path], seeds: int, ranks: int, out: Path) -> str | None:
    """What is wrong with the command, in a line; makes the folder for the results."""
    missing = [str(config) for config in configs if not config.is_file()]
    if missing:
        return f"--config {missing[0]}: no such file; it is looked for from {Path.cwd()}"
    if len({config.stem for config in configs}) < len(configs):
        return "--config: two files of the same name would be one line of the picture; rename one"
    if seeds < 1 or ranks < 1:
        return f"--seeds is {seeds} and --ranks is {ranks}; allowed: 1 or more of each"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"--out {out}: cannot be made: {error.strerror}; choose another folder"
    return None


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

"""`dlrm-dist evaluate`: all metrics of a trained run on a dataset with its columns."""

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrm_dist import local_ranks, place
from dlrm_dist.checkpoint.saved_run import CHOICES, SavedRun, check_columns, check_rows, find
from dlrm_dist.config import Config
from dlrm_dist.data.schema import DatasetInfo, check_category, read_info
from dlrm_dist.errors import UserError
from dlrm_dist.plain import without_nan

if TYPE_CHECKING:
    from dlrm_dist.scoring import Score

_SECTIONS = ("metrics", "eval", "runtime")
"""What may be set anew: the others say what the model is."""
_FIGURES = ("auc", "auprc", "log_loss", "ne", "calibration", "accuracy", "gauc")
"""The columns of the curve."""


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the verb's options."""
    parser.description = (
        "Scores a trained run on any dataset with the run's columns and ids: AUC, average precision, log loss, "
        "normalised entropy, calibration, accuracy, grouped AUC. --metrics.exact true: without bins; "
        "--metrics.group_by COLUMN: grouped; --eval.* and --runtime.* as in training."
    )
    parser.add_argument("folder", metavar="RUN", type=Path, help="a run's folder, runs/NAME")
    parser.add_argument("data", metavar="DATASET", type=Path, help="a prepared dataset")
    parser.add_argument("--checkpoint", help=f"{CHOICES} (default newest)")
    parser.add_argument("--each-checkpoint", action="store_true", help="a line for each saved checkpoint")
    parser.add_argument("--split", help="which rows (default: the run's eval.split)")
    parser.add_argument("--ranks", type=int, help="ranks to start on this machine (default 1)")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=_evaluate, takes_config_keys=True)


def _evaluate(options: argparse.Namespace) -> int:
    ranks = local_ranks.ranks_wanted(options.ranks)
    saved, info, split = check(options, ranks)
    if ranks > 1 and not place.is_rank():
        return local_ranks.run_verb(options.words, ranks)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # before PyTorch is loaded: see launch/train.py
    from dlrm_dist.scoring import score

    started = time.perf_counter()
    checkpoints = saved.checkpoints if options.each_checkpoint else [saved.checkpoint]
    scores, speaks = score(saved, options.data, info, split, checkpoints)
    if speaks:
        rows = info.splits[split].rows
        seconds = time.perf_counter() - started
        about = {"run": str(saved.path), "data": str(options.data), "split": split, "rows": rows, "ranks": ranks}
        print(_json(about, scores) if options.json else _text(about, scores, seconds, options.each_checkpoint))
    return 0


def check(options: argparse.Namespace, ranks: int) -> tuple[SavedRun, DatasetInfo, str]:
    """The run, the dataset and its split that a command line means, on so many ranks; nothing is started.

    Raises:
        UserError: there is no such run, checkpoint, dataset or split, or they do not fit each other or the ranks.
    """
    if options.each_checkpoint and options.checkpoint:
        raise UserError("--each-checkpoint and --checkpoint exclude each other; give one of them")
    _refuse_other_keys(options.config_keys)
    saved = find(options.folder, options.checkpoint or "newest", options.config_keys)
    info, split = read_info(options.data), options.split or saved.config.eval.split
    check_columns(saved.columns, options.data, info)
    check_rows(options.data, info, split, ranks)
    _check_sizes(saved.config, ranks)
    check_category("metrics.group_by", saved.config.metrics.group_by, info)
    return saved, info, split


def _refuse_other_keys(words: Sequence[str]) -> None:
    for word in words:
        key = word.removeprefix("--").partition("=")[0]
        if word.startswith("--") and key.partition(".")[0] not in _SECTIONS:
            allowed = ", ".join(f"--{section}.*" for section in _SECTIONS)
            raise UserError(f"{word}: is not to be set here, the run says what it is; allowed: {allowed}; leave it out")


def _check_sizes(config: Config, ranks: int) -> None:
    if config.eval.batch_size < ranks:
        raise UserError(
            f"eval.batch_size is {config.eval.batch_size}, the global batch of {ranks} ranks: each needs a row at "
            "least; use more, or fewer ranks"
        )


def _json(about: dict[str, Any], scores: "Sequence[Score]") -> str:
    found = [
        {"step": each.step, "epoch": each.epoch, "checkpoint": str(each.checkpoint), **each.metrics.as_dict()}
        for each in scores
    ]
    return json.dumps({**about, "scores": [without_nan(each) for each in found]}, indent=1, allow_nan=False)


def _text(about: dict[str, Any], scores: "Sequence[Score]", seconds: float, is_curve: bool) -> str:
    ranks = f"{about['ranks']} rank{'s' * (about['ranks'] > 1)}"
    lines = [f"{about['run']} on {about['data']}, {about['split']}: {about['rows']:,} rows, {ranks}, {seconds:.1f} s"]
    return "\n".join(lines + (_curve(scores) if is_curve else _figures(scores[0])))


def _curve(scores: "Sequence[Score]") -> list[str]:
    shown = [name for name in _FIGURES if name in scores[0].metrics.as_dict()]
    lines = [f"{'step':>10} {'epoch':>5} " + " ".join(f"{name:>11}" for name in shown)]
    for each in scores:
        values = each.metrics.as_dict()
        lines.append(f"{each.step:>10} {each.epoch or '-':>5} " + " ".join(f"{values[name]:>11.6f}" for name in shown))
    return lines


def _figures(score: "Score") -> list[str]:
    values = score.metrics.as_dict()
    errors = {name: values.pop(f"{name}_error") for name in ("auc", "auprc")}
    lines = [f"{'step':<12} {score.step:>14}  {score.checkpoint}"]
    for name, value in values.items():
        bound = f"  +- {errors[name]:.1e} by binning" if errors.get(name) else ""
        shown = f"{value:>14,.0f}" if name in ("rows", "gauc_groups", "gauc_rows") else f"{value:>14.9f}"
        lines.append(f"{name:<12} {shown}{bound}")
    return lines

"""`dlrm-dist inspect`: what is in a dataset or in a checkpoint."""

import argparse
import json
from pathlib import Path
from typing import Any

from dlrm_dist.checkpoint_verbs import inspect_checkpoint
from dlrm_dist.errors import UserError


def add_inspect(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the options of `dlrm-dist inspect`."""
    parser.description = (
        "Of a prepared dataset: rows, splits, label rates, and each column's values. Of a checkpoint: where the run "
        "stood, its scores, each tensor, and whether it is whole."
    )
    parser.add_argument("path", type=Path, help="a dataset, a run, one of its checkpoints, or an unsharded one")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=_inspect)


def _inspect(options: argparse.Namespace) -> int:
    from dlrm_dist.checkpoint.source import has_checkpoint
    from dlrm_dist.data.contents import contents

    path = options.path
    if not (path / "dataset.json").is_file() or (path / "checkpoints").is_dir():  # a run keeps a dataset.json too
        if not has_checkpoint(path):
            raise UserError(
                f"{path}: neither a dataset nor a checkpoint here; allowed: what dlrm-dist prepare or synth made, "
                "runs/NAME, or one of its checkpoints; check the path"
            )
        return inspect_checkpoint(options)
    found = contents(path)
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    _print_rows(found)
    _print_dense(found)
    _print_categories(found["categories"])
    return 0


def _print_rows(found: dict[str, Any]) -> None:
    for name, split in found["splits"].items():
        print(f"{name:<6} {split['rows']:>14,} rows  {split['label_rate']:.2%} clicks")
    print(f"{'total':<6} {found['rows']:>14,} rows")
    faults = ", ".join(f"{name} {count:,}" for name, count in found["bad_rows"].items())
    print(f"bad rows left out or mended: {found['num_bad_rows']:,}{faults and f' ({faults})'}")


def _print_dense(found: dict[str, Any]) -> None:
    print(f"\n{'dense':<6} {'min':>10} {'mean':>10} {'max':>10} {'zeros':>7} {'missing':>8}")
    for name, column in found["dense"].items():
        print(f"{name:<6} {_range(column)} {column['zeros']:>7.1%} {_missing(column):>8}")
    if weight := found["weight"]:
        print(f"\n{'weight':<6} {'min':>10} {'mean':>10} {'max':>10}\n{weight['column']:<6} {_range(weight)}")


def _print_categories(categories: dict[str, Any]) -> None:
    tops = next(iter(categories.values()))["top"]
    heads = " ".join(f"{'top ' + top:>8}" for top in tops)
    print(f"\n{'category':<8} {'ids':>12} {'seen':>12} {'rare':>7} {'missing':>8} {heads}")
    for name, column in categories.items():
        shares = " ".join(f"{share:>8.1%}" for share in column["top"].values())
        rare = "-" if column["rare"] is None else f"{column['rare']:.1%}"
        sizes = column.get("ids_a_row")
        lists = f"  {sizes['min']} to {sizes['max']} ids a row, {sizes['mean']:.2f} on average" if sizes else ""
        ids = "raw" if column["ids"] is None else f"{column['ids']:,}"
        print(f"{name:<8} {ids:>12} {column['seen']:>12,} {rare:>7} {_missing(column):>8} {shares}{lists}")


def _range(column: dict[str, Any]) -> str:
    return " ".join(f"{column[key]:>10.4g}" for key in ("min", "mean", "max"))


def _missing(column: dict[str, Any]) -> str:
    """The share of missing values: exactly, at most, or unknown."""
    exact, most = column.get("missing"), column["missing_at_most"]
    if exact is not None:
        return f"{exact:.1%}"
    return "unknown" if most is None else f"<={most:.1%}"

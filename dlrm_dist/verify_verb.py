"""`dlrm-dist verify`: sharded against unsharded training of a config's model, on this machine."""

import argparse
import json
import sys
from pathlib import Path

from dlrm_dist import config as config_module
from dlrm_dist.errors import UserError
from dlrm_dist.models.shape import model_shape
from dlrm_dist.verify.cases import FUSED_ON_CPU, PRECISIONS, Layout, make_cases

_DEFAULT_LAYOUTS = "1x2"


def add_verify(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the verb's options."""
    parser.description = (
        "Trains the config's model, its tables made small, for 20 steps on real processes over gloo, for each sharding "
        "type and all of them mixed, and compares weights and optimizer state with a model that is not sharded. Exit "
        "code 1 when something that should be equal is not."
    )
    parser.add_argument("--config", type=Path, help="the run's TOML file; --section.key value overrides it")
    parser.add_argument(
        "--ranks",
        default=_DEFAULT_LAYOUTS,
        help="numbers of ranks, or HOSTSxRANKS for simulated hosts: 2,4,2x2 (default %(default)s)",
    )
    parser.add_argument("--all", action="store_true", help="all fused optimizers and precisions, not only the config's")
    parser.add_argument("--json", action="store_true", help="the table as JSON")
    parser.set_defaults(run=_verify, takes_config_keys=True)


def _verify(options: argparse.Namespace) -> int:
    given = [] if options.config is None else ["--config", str(options.config)]
    config = config_module.load([*given, *options.config_keys])
    layouts = [_layout(text) for text in options.ranks.split(",")]
    if config.optimizer.sparse not in FUSED_ON_CPU:
        allowed = ", ".join(FUSED_ON_CPU)
        raise UserError(
            f"optimizer.sparse is {config.optimizer.sparse}, which has no fused kernel on CPU; use {allowed}"
        )
    if config.model.managed_collisions:
        raise UserError(
            "model.managed_collisions: unsharded tables have no rows to compare with, as a rank's ids choose its rows; "
            "leave it out to verify the rest"
        )
    comm = dict.fromkeys(("fp32", config.sharding.comm_precision))
    cases = make_cases(
        layouts,
        FUSED_ON_CPU if options.all else (config.optimizer.sparse,),
        ("fp32", "fp16") if options.all else (config.model.table_precision,),
        PRECISIONS if options.all else comm,
    )
    shape = model_shape(config.data, config.model)
    from dlrm_dist.verify.compare import compare
    from dlrm_dist.verify.ranks import RanksFailedError

    results = []
    if not options.json:
        print(_HEADER)
    try:
        for result in compare(cases, config.model, shape):
            results.append(result)
            if not options.json:
                case = result.case
                figures = (result.weights, result.moments, result.rows, result.moved, result.tolerance)
                shown = " ".join(f"{'' if figure is None else f'{figure:.1e}':>9}" for figure in figures)
                print(
                    f"{case.layout!s:<6} {case.sharding_type:<18} {case.optimizer:<16} {case.table_precision:<7} "
                    f"{case.comm_precision:<18} {shown}  {result.verdict}",
                    flush=True,
                )
    except RanksFailedError as error:
        print(error, file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps([result.as_dict() for result in results], indent=1))
    return 1 if any(result.is_failure for result in results) else 0


_HEADER = (
    f"{'ranks':<6} {'sharding':<18} {'optimizer':<16} {'weights':<7} {'exchange':<8} "
    f"{'largest':>9} {'state':>9} {'rows':>9} {'moved':>9} {'tolerance':>9}  verdict"
)


def _layout(text: str) -> Layout:
    hosts, times, ranks = text.strip().partition("x") if "x" in text else ("1", "x", text.strip())
    if not (hosts.isdigit() and ranks.isdigit() and 1 <= int(hosts) * int(ranks) <= 16 and times):
        raise UserError(f"--ranks {text!r}: write a number of ranks, or HOSTSxRANKS, up to 16 in all: 2,4,2x2")
    return Layout(int(hosts), int(ranks))

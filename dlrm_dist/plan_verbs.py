"""`dlrm-dist plan make|explain|diff|check|fit`: thin verbs over dlrm_dist.planning.

What only reads a plan starts without PyTorch.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from dlrm_dist import config as config_module
from dlrm_dist import progress
from dlrm_dist.config import Config
from dlrm_dist.planning import check, diff, fit, measured, plan_file
from dlrm_dist.planning import explain as explain_module
from dlrm_dist.planning.cluster import HERE, Cluster, load_cluster
from dlrm_dist.planning.plan_file import PlanFile


def add_verbs(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the verbs of `dlrm-dist plan`."""
    parser.description = "Sharding plans as files, for clusters at hand or not. None of it needs a GPU."
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    _add_make(verbs.add_parser("make", help="plan a config's tables for a described cluster"))
    _add_explain(verbs.add_parser("explain", help="why a plan is as it is: tables, ranks, the predicted step"))
    _add_diff(verbs.add_parser("diff", help="which tables two plans place differently, and what that changes"))
    _add_check(verbs.add_parser("check", help="whether a plan is sound, and still the one for a config"))
    _add_fit(verbs.add_parser("fit", help="the smallest cluster that holds a model, and what more devices bring"))


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, help="the run's TOML file; --section.key value overrides it")
    parser.add_argument("--constraints", help="a file of constraints, or a name in sharding_plans/constraints/")
    parser.set_defaults(takes_config_keys=True)


def _add_make(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    parser.add_argument("--cluster", required=True, help="NAME, NAME:HOSTSxDEVICES (h100:16x8), or a TOML file")
    parser.add_argument("--out", type=Path, required=True, help="the plan file to write, NAME.plan.json")
    parser.set_defaults(run=_make)


def _make(options: argparse.Namespace) -> int:
    config = _config(options)
    started = time.perf_counter()
    plan = _plan(config, load_cluster(options.cluster), options.constraints)
    plan.write(options.out)
    print("\n".join(plan_file.summary(plan)))
    print(f"{options.out}: planned for {plan.world_size} ranks in {time.perf_counter() - started:.1f} s")
    for line in _warnings(plan):
        print(line)
    return 0


def _add_explain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", type=Path, help="a plan file")
    parser.add_argument("--json", action="store_true", help="all figures as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one self-contained page with pictures")
    parser.add_argument("--measured", type=Path, metavar="RUN", help="put a run's step times beside the predicted ones")
    parser.set_defaults(run=_explain)


def _explain(options: argparse.Namespace) -> int:
    plan = plan_file.read(options.plan)
    run = None if options.measured is None else measured.read_run(options.measured)
    found = explain_module.explain(plan, run)
    if options.html:
        from dlrm_dist.planning import page  # Jinja2 is needed for this alone

        page.write(found, plan, options.html)
        print(f"{options.html}: written", file=sys.stderr)
    print(json.dumps(found, indent=1) if options.json else "\n".join(explain_module.text(found)))
    return 0


def _add_diff(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("old", type=Path, help="a plan file")
    parser.add_argument("new", type=Path, help="another")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=_diff)


def _diff(options: argparse.Namespace) -> int:
    old, new = plan_file.read(options.old), plan_file.read(options.new)
    print(json.dumps(diff.compare(old, new), indent=1) if options.json else "\n".join(diff.text(old, new)))
    return 0


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", type=Path, help="a plan file")
    _add_config(parser)
    parser.add_argument("--cluster", help="the cluster it must be for; not given: the one it names")
    parser.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    """Exit code 1 with each problem on a line; a plan of another version is a problem too."""
    try:
        plan = plan_file.read(options.plan)
    except plan_file.OtherVersionError as error:
        print(error)
        return 1
    current = None
    if options.config or options.config_keys:
        from dlrm_dist.planning.inputs import current_inputs

        config = _config(options)
        rules_file = options.constraints or plan.inputs.constraints_file
        current = current_inputs(config, _current_cluster(options.cluster, plan), rules_file)
    problems = check.problems(plan, current)
    for line in problems:
        print(line)
    for package, version in plan.inputs.versions.items():
        if current and current.versions.get(package, version) != version:
            print(f"note: made with {package} {version}, here is {current.versions[package]}")
    if problems:
        return 1
    loads = f"{len(plan.inputs.tables)} tables on {plan.world_size} ranks"
    print(f"{options.plan}: sound: {loads}" + (f", and up to date with {options.config}" if current else ""))
    return 0


def _add_fit(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    parser.add_argument("--gpu", required=True, help="a cluster's name or TOML file; its size does not matter")
    parser.add_argument("--most", type=int, default=1024, help="devices to go up to (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=_fit)


def _fit(options: argparse.Namespace) -> int:
    config = _config(options)
    cluster = load_cluster(options.gpu)
    from dlrm_dist.planning.inputs import planner_of

    plan = planner_of(config, options.constraints)
    found = []
    most = min(options.most, config.train.batch_size)
    with progress.bar("fit", "sizes", len(list(fit.sizes(cluster, most)))) as bar:
        for point in fit.points(cluster, most, plan):
            found.append(point)
            bar.update()
    if options.json:
        print(json.dumps([fit.as_dict(point) for point in found], indent=1))
        return 0
    print("\n".join(fit.table(found)))
    smallest = next((point for point in found if point.step), None)
    if smallest is None:
        print(f"{cluster.name}: nothing up to {found[-1].cluster.world_size} ranks holds the tables")
        return 1
    print(f"smallest that holds the tables: {smallest.cluster.name}:{smallest.cluster.size}")
    return 0


def _config(options: argparse.Namespace) -> Config:
    given = [] if options.config is None else ["--config", str(options.config)]
    return config_module.load([*given, *options.config_keys])


def _plan(config: Config, cluster: Cluster, constraints: str | None) -> PlanFile:
    from dlrm_dist.planning.inputs import planner_of

    return planner_of(config, constraints)(cluster)


def _current_cluster(given: str | None, plan: PlanFile) -> Cluster:
    """The cluster as it is described now; what a run measured on its own machine stays."""
    if given:
        return load_cluster(given)
    old = plan.inputs.cluster
    now = load_cluster(f"{old.name}:{old.size}")
    for name, constant in old.constants:
        if constant.source.startswith(HERE):
            now = now.with_constant(name, constant.value, constant.source)
    return now


def _warnings(plan: PlanFile) -> list[str]:
    """What a user should know of a plan that is sound."""
    cut = {"column_wise", "table_column_wise", "grid_shard"}
    names = [name for name, sharding in plan.placed() if sharding.sharding_type in cut]
    if names and plan.inputs.optimizer == "rowwise_adagrad":
        return [
            f"note: {', '.join(names)}: cut by columns, row-wise Adagrad keeps a moment for each part of a row, "
            "so training differs from that of whole tables"
        ]
    return []

"""`dlrm-dist checkpoint reshard|unshard|diff`, and `inspect` of one: one process, on CPU, memory for one table."""

import argparse
import json
from pathlib import Path
from typing import Any

from dlrm_dist.errors import UserError


def add_verbs(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the verbs of `dlrm-dist checkpoint`."""
    parser.description = "Checkpoints, offline: any one can be loaded under any plan without these."
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    reshard = verbs.add_parser("reshard", help="rewrite a checkpoint as another plan's ranks would have written it")
    reshard.add_argument("checkpoint", type=Path, help="a run, or one of its checkpoints")
    reshard.add_argument("out", type=Path, help="the checkpoint to make")
    reshard.add_argument("--plan", type=Path, required=True, help="a plan file")
    reshard.set_defaults(run=_reshard)
    unshard = verbs.add_parser("unshard", help="write whole tensors as safetensors, one file a table")
    unshard.add_argument("checkpoint", type=Path, help="a run, or one of its checkpoints")
    unshard.add_argument("out", type=Path, help="the folder to make")
    unshard.add_argument("--optimizer", action="store_true", help="also the optimizer's state")
    unshard.set_defaults(run=_unshard)
    diff = verbs.add_parser("diff", help="which tensors differ, and how far; exit 1 if any does")
    diff.add_argument("a", type=Path, help="a run, a checkpoint, or an unsharded one")
    diff.add_argument("b", type=Path, help="another one")
    diff.add_argument("--tolerance", type=float, default=0.0, help="largest difference to pass over (default 0)")
    diff.add_argument("--json", action="store_true", help="as JSON")
    diff.set_defaults(run=_diff)


def _reshard(options: argparse.Namespace) -> int:
    from dlrm_dist.checkpoint.reshard import reshard
    from dlrm_dist.planning import plan_file

    plan = plan_file.read(options.plan)
    source = _sharded(options.checkpoint)
    reshard(source, plan, options.out)
    print(f"{options.out}: {source.path} as {plan.world_size} ranks of {options.plan} would write it")
    return 0


def _unshard(options: argparse.Namespace) -> int:
    from dlrm_dist.checkpoint.unshard import unshard

    source = _sharded(options.checkpoint)
    count = unshard(source, options.out, options.optimizer)
    print(f"{options.out}: {count} tensors of {source.path}")
    return 0


def _diff(options: argparse.Namespace) -> int:
    from dlrm_dist.checkpoint.compare import comparable, compare
    from dlrm_dist.checkpoint.source import open_source

    a, b = open_source(options.a), open_source(options.b)
    keys = comparable(a, b)
    found = compare(a, b, keys, options.tolerance)
    if options.json:
        print(json.dumps([each.__dict__ for each in found], indent=1))
    else:
        for each in found:
            how = f": by at most {each.largest:.3g}, {each.share:.1%} of them" if each.what == "values" else ""
            print(f"{each.key}: {each.what}{how}")
        print(f"{len(found)} of {len(keys)} tensors differ ({a.path}, {b.path})")
    return 1 if found else 0


def inspect_checkpoint(options: argparse.Namespace) -> int:
    """Print what is in the checkpoint `options.path`; returns the exit code."""
    found = _describe(options.path)
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    for key, value in found.items():
        if key != "tensors":
            print(f"{key:<16} {value if not isinstance(value, dict) else _pairs(value)}")
    print(f"{'tensor':<64} {'size':>18} {'type':>8} {'parts':>5} {'MiB':>10}")
    for each in found["tensors"]:
        size = " x ".join(map(str, each["size"])) or "scalar"
        print(f"{each['name']:<64} {size:>18} {each['type']:>8} {each['parts']:>5} {each['bytes'] / 2**20:>10.2f}")
    return 0


def _describe(path: Path) -> dict[str, Any]:
    from dlrm_dist.checkpoint.folder import read_facts
    from dlrm_dist.checkpoint.source import Sharded, open_source

    source = open_source(path)
    found: dict[str, Any] = {"path": str(source.path)}
    if isinstance(source, Sharded):  # opening it has proven its checksums
        facts = read_facts(source.path)
        found |= {"files": f"whole ({len(facts.sha256)} checksums)", "format": facts.format, "step": facts.step}
        found |= {"epoch": facts.epoch, "rows": facts.rows, "scores": facts.scores, "saved with": facts.announced}
    tensors: list[dict[str, Any]] = []
    for key, size in source.sizes.items():
        dtype = source.dtype(key)
        total = dtype.itemsize
        for each in size:
            total *= each
        name = str(dtype).removeprefix("torch.")
        tensors.append({"name": key, "size": list(size), "type": name, "parts": source.parts(key), "bytes": total})
    return found | {"bytes": sum(int(each["bytes"]) for each in tensors), "tensors": tensors}


def _sharded(path: Path) -> Any:
    from dlrm_dist.checkpoint.source import Sharded, open_source

    source = open_source(path)
    if not isinstance(source, Sharded):
        raise UserError(f"{path}: is unsharded already; name a run, or one of its checkpoints")
    return source


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:.5g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
    )

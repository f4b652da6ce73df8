"""`dlrm-dist runs` and `dlrm-dist report`: runs side by side, in a table and as a page. Both start without PyTorch."""

import argparse
import json
import sys
from pathlib import Path

from dlrm_dist.errors import UserError
from dlrm_dist.runs import table


def add_runs(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the options of `dlrm-dist runs`."""
    parser.description = "The runs in a folder: how each stands, how far it is, how good and how fast."
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs"), help="(default %(default)s)")
    parser.add_argument(
        "--sort",
        default="name",
        metavar="KEY",
        help=f"{', '.join(table.COLUMNS)}, or a config's section.key (default %(default)s)",
    )
    parser.add_argument(
        "--filter",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="only those with that value, such as state=finished or optimizer.sparse=sgd; repeatable",
    )
    parser.add_argument("--json", action="store_true", help="as JSON, with the configs")
    parser.set_defaults(run=_runs)


def add_report(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the options of `dlrm-dist report`."""
    parser.description = "One self-contained page about a run, or about several side by side."
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run's folder, finished or not")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page (default, for one run: RUN/report.html)")
    parser.set_defaults(run=_report)


def _runs(options: argparse.Namespace) -> int:
    found, damaged = table.find(options.folder)
    rows = table.select([table.row(run) for run in found], options.filter, options.sort)
    for line in damaged:
        print(line, file=sys.stderr)
    if options.json:
        print(json.dumps(rows, indent=1, allow_nan=False))
    elif rows:
        print("\n".join(table.text(rows, options.sort)))
    else:
        print(f"none of the {len(found)} runs in {options.folder} matches", file=sys.stderr)
    return 0


def _report(options: argparse.Namespace) -> int:
    from dlrm_dist.runs import report

    out = options.out
    if out is None:
        if len(options.runs) > 1:
            raise UserError("--out is needed for a page about several runs; add --out FILE.html")
        out = options.runs[0] / report.FILE
    report.write(options.runs, out)
    print(f"{out}: written")
    return 0

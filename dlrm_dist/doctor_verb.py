"""`dlrm-dist doctor`: what the machines can do, what is amiss with them, and a cluster file of it for the planner."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dlrm_dist import config as config_module
from dlrm_dist import local_ranks, place
from dlrm_dist.data import files
from dlrm_dist.errors import RunFailedError, UserError, first_line
from dlrm_dist.sections import RuntimeSection

if TYPE_CHECKING:
    from dlrm_dist.runtime import Session


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the verb's options."""
    parser.description = (
        "Examines the machines of a run: versions, cores, memory, limits, disks, the links inside a host and between "
        "hosts, clocks; says what is amiss and what it costs. On many hosts: launch/doctor.py under a launcher, with "
        "the same options. --runtime.* as in training. Exit code 1 when something is broken, 0 with warnings alone."
    )
    parser.add_argument("--ranks", type=int, help="ranks to start on this machine (default 1)")
    parser.add_argument("--data", metavar="PATH|URL", help="measure how fast this dataset, folder or file is read")
    parser.add_argument("--storage", type=Path, metavar="FOLDER", help="folder of runs: is it shared, how fast is it?")
    parser.add_argument("--out", type=Path, metavar="FILE.toml", help="write a cluster file for dlrm-dist plan")
    parser.add_argument("--quick", action="store_true", help="a few seconds; figures are rough")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=_doctor, takes_config_keys=True)


def _doctor(options: argparse.Namespace) -> int:
    ranks = local_ranks.ranks_wanted(options.ranks)
    runtime = runtime_of(options)
    if not place.is_rank():
        _check(options)
        if ranks > 1:
            return local_ranks.run_verb(options.words, ranks)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # before PyTorch is loaded: see launch/train.py
    _load_torch()
    from dlrm_dist.runtime import session

    with session(runtime) as here:
        try:
            return _examine(options, here)
        except UserError as error:
            # All ranks meet it alike, and leave in order: in 1 of 2 runs a rank that left at once aborted in a thread.
            refused = error
    raise refused


def runtime_of(options: argparse.Namespace) -> RuntimeSection:
    """The machine's part of a config, from --runtime.*.

    Raises:
        UserError: another option or a wrong value.
    """
    return config_module.load(_runtime_keys(options.config_keys)).runtime


def _load_torch() -> None:
    """Import PyTorch, without which nothing else can be examined.

    Raises:
        RunFailedError: it cannot be imported.
    """
    try:
        import torch  # noqa: F401
    except (ImportError, OSError) as error:  # the second is a library's that misses a symbol
        way_out = "install the pins of pyproject.toml: make"
        raise RunFailedError(f"broken: torch cannot be imported: {first_line(error)}; {way_out}") from None


def _examine(options: argparse.Namespace, here: "Session") -> int:
    from dlrm_dist.doctor import cluster_file, report
    from dlrm_dist.doctor.examination import examine
    from dlrm_dist.doctor.findings import findings

    here.from_main(lambda: _check(options))
    found = examine(here, options.data, options.storage, options.quick)
    amiss = findings(found, cluster_file.known_cluster(found))
    if here.is_main:
        if options.out:
            command = f"dlrm-dist doctor{' --quick' * options.quick}"
            cluster_file.write(cluster_file.make(found, str(options.out), command), options.out)
        print(report.as_json(found, amiss) if options.json else report.text(found, amiss))
        if options.out and not options.json:
            print(f"\n{options.out}: cluster file written; use it: dlrm-dist plan make --cluster {options.out} ...")
    return 1 if any(each.level == "broken" for each in amiss) else 0


def _check(options: argparse.Namespace) -> None:
    """Refuse what cannot be, before anything is measured."""
    if options.data is not None:
        files.find_below(options.data)
    if options.storage is not None:
        _check_folder(options.storage, "--storage", options.storage)
    if options.out is None:
        return
    if options.out.suffix != ".toml":
        raise UserError(f"--out {options.out}: a cluster file's name ends in .toml; choose such a name")
    if options.out.exists():
        raise UserError(f"--out {options.out}: is there already; allowed: a new file; choose another or remove it")
    _check_folder(options.out.parent, "--out", options.out)


def _check_folder(folder: Path, key: str, given: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"{key} {given}: there is no folder {folder}; allowed: one that is there; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{key} {given}: {folder} is not a folder one may write to; choose another")


def _runtime_keys(words: Sequence[str]) -> list[str]:
    for word in words:
        if word.startswith("--") and not word.startswith("--runtime."):
            raise UserError(f"unrecognized arguments: {word}; allowed: --runtime.*; see dlrm-dist doctor --help")
    return [*words]

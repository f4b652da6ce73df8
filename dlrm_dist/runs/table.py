"""Many runs as a table: filtered and sorted by how they stand, what they measured, or a key of their configs."""

import difflib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dlrm_dist.errors import UserError
from dlrm_dist.pages.html import figure
from dlrm_dist.runs import record
from dlrm_dist.runs.record import Record

COLUMNS = ("name", "state", "started", "step", "auc", "log_loss", "samples_per_s")
_TO_THE_MINUTE = len("2026-01-01 12:00")
_LEAST_FIRST = ("name", "state", "started", "log_loss")


def find(folder: Path) -> tuple[list[Record], list[str]]:
    """The runs in a folder, and a line for each that cannot be read.

    Raises:
        UserError: there is no such folder, it is a run itself, or there is no run in it.
    """
    if record.is_run(folder):
        raise UserError(f"{folder}: is a run; name the folder it lies in, or report it: dlrm-dist report {folder}")
    if not folder.is_dir():
        raise UserError(f"{folder}: no folder here; name a folder of runs (a config's run.folder)")
    found, damaged = [], []
    for path in sorted(path for path in folder.iterdir() if record.is_run(path)):
        try:
            found.append(record.read(path))
        except UserError as error:
            damaged.append(str(error))
    if not found and not damaged:
        raise UserError(f"{folder}: no runs in this folder; name a folder of runs (a config's run.folder)")
    return found, damaged


def row(run: Record) -> dict[str, Any]:
    """A run as plain values by column; what it has not is None."""
    figures = {key: run.last_scores.get(key) for key in ("auc", "log_loss")}
    measured = {
        key: None if value is None or not math.isfinite(value) else value
        for key, value in {**figures, "samples_per_s": run.samples_per_s}.items()
    }
    return {
        "name": run.name,
        "state": run.state["state"],
        "started": run.state["started"] or None,
        "step": run.step,
        **measured,
        "reason": run.state["reason"],
        "path": str(run.path),
        "config": run.config,
    }


def select(rows: Sequence[dict[str, Any]], filters: Sequence[str], sort: str) -> list[dict[str, Any]]:
    """The rows that match all of `key=value`, sorted: figures with the best first, what has none last.

    Raises:
        UserError: a key that neither a column nor the config has; a filter without `=`.
    """
    for each in filters:
        key, equals, wanted = each.partition("=")
        if not equals:
            raise UserError(f"--filter {each!r}: write key=value, such as state=finished or optimizer.sparse=sgd")
        _check(key, "--filter")
        rows = [one for one in rows if _matches(value_of(one, key), wanted)]
    _check(sort, "--sort")
    have = [one for one in rows if value_of(one, sort) is not None]
    have.sort(key=lambda one: _order(value_of(one, sort)), reverse=sort in COLUMNS and sort not in _LEAST_FIRST)
    return have + [one for one in rows if value_of(one, sort) is None]


def text(rows: Sequence[dict[str, Any]], sort: str) -> Iterator[str]:
    """The table as lines; a config's key that it is sorted by is a column too."""
    columns = [*COLUMNS, *([] if sort in COLUMNS else [sort])]
    cells = [columns, *([_cell(key, value_of(one, key)) for key in columns] for one in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        shown = [
            cell.ljust(width) if key in ("name", "state", "started") else cell.rjust(width)
            for key, cell, width in zip(columns, line, widths, strict=True)
        ]
        yield "  ".join(shown).rstrip()


def value_of(one: dict[str, Any], key: str) -> Any:
    """A row's value of a column or of a key of its config."""
    return one[key] if key in COLUMNS else one["config"].get(key)


def _check(key: str, option: str) -> None:
    allowed = [*COLUMNS, *record.defaults()]
    if key not in allowed:
        near = difflib.get_close_matches(key, allowed, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(COLUMNS)}, or a config's section.key"
        raise UserError(f"{option}: unknown key {key!r}: {hint}")


def _matches(value: Any, wanted: str) -> bool:
    """Whether a value is what was written: numbers by value, lists with commas, `none` for what was not given."""
    written = "none" if value is None else figure(value) if isinstance(value, bool) else str(value)
    if isinstance(value, list):
        return [str(each) for each in value] == [word.strip() for word in wanted.split(",")]
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(wanted) == value
        except ValueError:
            return False
    return written == wanted


def _order(value: Any) -> tuple[bool, Any]:
    """Numbers before words, both in their own order."""
    is_number = isinstance(value, int | float)
    return not is_number, value if is_number else str(value)


def _cell(key: str, value: Any) -> str:
    return (value[:_TO_THE_MINUTE] if key == "started" and value else figure(value)) or "-"

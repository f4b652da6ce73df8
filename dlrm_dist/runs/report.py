"""A report of runs: one self-contained page of results, curves, plans, data, configs and environments."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dlrm_dist.data.schema import DatasetInfo
from dlrm_dist.errors import UserError, first_problem
from dlrm_dist.pages import html
from dlrm_dist.planning import explain, page, plan_file
from dlrm_dist.runs import pictures, record
from dlrm_dist.runs.record import Record

FILE = "report.html"
_LARGEST_TABLES = 8


def write(folders: Sequence[Path], out: Path) -> None:
    """Write a page about the runs in `folders`, side by side where they are several.

    Raises:
        UserError: one is no run, or is damaged; the page cannot be written.
    """
    runs = [record.read(folder) for folder in folders]
    html.write(
        "runs.html.j2",
        out,
        title=", ".join(run.name for run in runs),
        runs=[{"record": run, **_sections(run)} for run in runs],
        figures=_figures(runs),
        curves=pictures.curves_of(runs),
        changed=_changed(runs),
        defaults=record.defaults(),
    )


def _sections(run: Record) -> dict[str, Any]:
    """What the page says of each run by itself."""
    return {
        "parts": pictures.step_parts(run),
        "plan": _plan(run.path / "plan.json"),
        "data": _data(run.path / "dataset.json"),
        "environment": _unnested(run.environment),
    }


def _figures(runs: Sequence[Record]) -> dict[str, list[Any]]:
    """All figures by name, a value a run: the result's, or the last validation's where there is none yet."""
    found = [{**run.last_scores, **run.result, "step": run.step, "samples_per_s": run.samples_per_s} for run in runs]
    names = dict.fromkeys(name for each in found for name in each if name not in ("run", "steps"))
    return {name: [each.get(name) for each in found] for name in names}


def _changed(runs: Sequence[Record]) -> dict[str, list[Any]]:
    """The keys that are not the default's in any of the runs (but where a run lies), a value a run."""
    known = record.defaults()
    keys = dict.fromkeys(key for run in runs for key in run.config if key not in ("run.name", "run.folder"))
    values = {key: [run.config.get(key) for run in runs] for key in keys}
    return {key: each for key, each in values.items() if any(value != known.get(key) for value in each)}


def _plan(path: Path) -> dict[str, Any]:
    """The plan explained, with its pictures; or why it cannot be."""
    try:
        plan = plan_file.read(path)
    except UserError as error:
        return {"problem": str(error)}
    found = explain.explain(plan)
    return {"problem": None, "found": found, "pictures": page.pictures(found, plan)}


def _data(path: Path) -> dict[str, Any]:
    """The dataset in short; or why nothing is known of it."""
    try:
        info = DatasetInfo.model_validate_json(path.read_text())
    except OSError as error:
        return {"problem": f"{path}: {error.strerror}"}
    except ValidationError as error:
        return {"problem": f"{path}: {first_problem(error)}"}
    largest = sorted(info.categories, key=lambda category: -category.rows)
    return {
        "problem": None,
        "splits": [(name, each.rows, each.clicks / max(1, each.rows)) for name, each in info.splits.items()],
        "best_auc": info.best_auc,
        "num_dense": len(info.dense),
        "num_categories": len(info.categories),
        "num_ids": sum(category.rows for category in info.categories),
        "largest": [(category.name, category.rows) for category in largest[:_LARGEST_TABLES]],
        "num_bad_rows": info.num_bad_rows,
        "format": info.transform.get("format"),
    }


def _unnested(values: dict[str, Any]) -> dict[str, Any]:
    """The packages among the other values."""
    return {**{key: each for key, each in values.items() if key != "packages"}, **values.get("packages", {})}

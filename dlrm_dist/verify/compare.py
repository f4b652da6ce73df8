"""Runs the cases on real processes and compares what they leave with the reference."""

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlrm_dist import progress
from dlrm_dist.models.shape import ModelShape
from dlrm_dist.runtime import quiet_libraries
from dlrm_dist.sections import ModelSection
from dlrm_dist.verify import reference, worker
from dlrm_dist.verify.cases import Case, Layout
from dlrm_dist.verify.problem import small
from dlrm_dist.verify.ranks import run_ranks

RATES = {"sgd": (10.0, 0.2), "adagrad": (0.02, 0.01), "rowwise_adagrad": (0.02, 0.01)}
"""Learning rates of tables and layers with which weights move by more than 0.1 in 20 steps: else it says little."""
_EPS = 1e-4
"""Of the adaptive optimizers: with 1e-8 the rounding of gradients near zero alone moves weights by 4e-5."""
_DENSE = {"sgd": "sgd", "adagrad": "adagrad", "rowwise_adagrad": "adagrad"}
_SECONDS_A_CASE = 30
_NORMALISED = 10.0
"""Factor on the exact tolerance with batch normalisation, which divides rounding by a column's deviation: one rank
differs from float64 by 7e-5 then, two do not differ by more."""


@dataclass(frozen=True)
class Result:
    """One case: the largest differences, the longest way a weight went, and what is to be said.

    Where every number is fp32 the largest differences decide, after all steps; else `rows`, after the first one.
    """

    case: Case
    weights: float | None
    moments: float | None
    rows: float | None
    """How far half of a table's rows are off at most, over the way that they went: of the worst table."""
    moved: float | None
    tolerance: float
    verdict: str

    @property
    def is_failure(self) -> bool:
        """Whether a case that should be equal is not."""
        return self.verdict == "DIFFERS"

    def as_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "case": {**asdict(self.case), "layout": str(self.case.layout)}}


def compare(cases: Sequence[Case], model: ModelSection, shape: ModelShape, slower: float = 1.0) -> Iterator[Result]:
    """The results of all cases, layout by layout.

    Args:
        cases: what to compare.
        model: the config's model; its tables are made small.
        shape: the model's features.
        slower: factor on the reference's learning rates; any but 1 breaks every case, to see that it is noticed.

    Raises:
        RanksFailedError: a rank failed or hung.
    """
    quiet_libraries()
    for layout in dict.fromkeys(case.layout for case in cases):
        mine = [case for case in cases if case.layout == layout]
        jobs = {case.name: _job(case, model, shape) for case in mine if not case.refused()}
        with progress.bar(f"verify on {layout} ranks", "cases", len(jobs)) as bar:
            found = _run(layout, list(jobs.values()), bar)
        for case in mine:
            if case.refused():
                yield Result(case, None, None, None, None, case.tolerance, f"refused: {case.refused()}")
            else:
                yield _result(case, jobs[case.name], found[case.name], slower)


def _job(case: Case, model: ModelSection, shape: ModelShape) -> worker.Job:
    # What is dropped differs from rank to rank.
    section = model.model_copy(update={"table_precision": case.table_precision, "dropout": 0.0})
    problem = small(section, shape)
    optimizer = {"sparse": case.optimizer, "dense": _DENSE[case.optimizer], "eps": _EPS}
    return worker.Job.model_validate(
        {
            "name": case.name,
            "model": section,
            "optimizer": optimizer,
            "num_dense": shape.num_dense,
            "features": problem.shape.named_rows,
            "types": case.types(len(problem.tables)),
            "comm_precision": case.comm_precision,
            "rates": RATES[case.optimizer],
        }
    )


def _run(layout: Layout, jobs: list[worker.Job], bar: Any) -> dict[str, Any]:
    """What the jobs leave behind, by name; the bar shows how many are done."""
    with tempfile.TemporaryDirectory() as folder:
        cases, out = Path(folder, "cases.json"), Path(folder, "out.pt")
        cases.write_text(worker.Jobs(jobs=jobs).model_dump_json())
        seconds = 60 + _SECONDS_A_CASE * len(jobs)
        run_ranks(
            Path(worker.__file__),
            layout.world_size,
            str(cases),
            str(out),
            timeout=seconds,
            local_world_size=layout.ranks_per_host,
            meanwhile=lambda: bar.update(worker.number_done(str(out)) - bar.n),
        )
        found: dict[str, Any] = torch.load(out, weights_only=True)
    return found


def _result(case: Case, job: worker.Job, found: dict[str, Any], slower: float) -> Result:
    rates = (job.rates[0] * slower, job.rates[1] * slower)
    final, moments = reference.train(job.problem(), found["initial"], job.optimizer, rates)
    state = [
        _largest(value.reshape(moments[name].shape), moments[name])
        for key, value in found["moments"].items()
        if (name := key.removesuffix(".momentum1")) in moments and value.numel() == moments[name].numel()
    ]
    weights = max(_largest(found["final"][key], value) for key, value in final.items())
    moved = max(_largest(found["initial"][key], value) for key, value in final.items())
    first, _ = reference.train(job.problem(), found["initial"], job.optimizer, rates, steps=1)
    keys = [reference.weight_key(table.name) for table in job.problem().tables]
    rows = max(_rows_off(found["first"][key], first[key], found["initial"][key]) for key in keys)
    worst = max([weights, *state]) if case.is_exact else rows
    tolerance = case.tolerance * (_NORMALISED if case.is_exact and job.model.has_batch_norm else 1)
    verdict = "equal" if worst <= tolerance else "DIFFERS"
    if not case.is_exact and verdict == "equal":
        verdict = "equal but for rounding"
    if case.cannot_be_equal():
        verdict = f"cannot be equal: {case.cannot_be_equal()}"
    return Result(case, weights, max(state, default=None), rows, moved, tolerance, verdict)


def _rows_off(mine: Tensor, theirs: Tensor, initial: Tensor) -> float:
    """The median, over the rows that went a way at all, of their difference over that way."""
    difference, way = (torch.linalg.vector_norm(each.double() - theirs, dim=1) for each in (mine, initial))
    moved = way > 0.05 * way.max()
    if not moved.any():  # nothing to compare with: then nothing may differ
        return 0.0 if bool((difference == 0).all()) else math.inf
    return float(torch.nan_to_num(difference / way, nan=float("inf"))[moved].median())


def _largest(a: Tensor, b: Tensor) -> float:
    """The largest difference; not-a-number counts as infinite."""
    return float(torch.nan_to_num((a.double() - b.double()).abs(), nan=float("inf")).max())

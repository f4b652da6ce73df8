"""How long the Predictor takes for a request: raw rows to probabilities, beside the model that was not exported.

python benchmarks/predictor.py RUN EXPORT... [--repeats N] [--json]

Requests of 1, 64 and 4,096 rows, as dicts and as an Arrow table, and the same rows through the trained model in eager
PyTorch, by the same transform. A request is one call; requests come one after another, the ways in turns.
"""

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import harness
import numpy as np
import pyarrow as pa

from dlrm_dist import Predictor
from dlrm_dist.checkpoint import saved_run
from dlrm_dist.data.kaggle import CATEGORIES, DENSE
from dlrm_dist.data.raw_rows import parse
from dlrm_dist.data.synthetic import write_clicks
from dlrm_dist.serving.scorer import Scorer, scorer_of_run

BATCHES = (1, 64, 4096)
_LONGEST_S = 1.5
"""A way of a batch is called for so long at most, for fewer calls then."""


def raw_rows(rows: int) -> list[dict[str, Any]]:
    """Planted clicks in Criteo's raw format, without labels."""
    with TemporaryDirectory() as folder:
        write_clicks(Path(folder, "rows.tsv"), rows, seed=7)
        lines = [line.split("\t")[1:] for line in Path(folder, "rows.tsv").read_text().splitlines()]
    found = [dict(zip((*DENSE, *CATEGORIES), (each or None for each in line), strict=True)) for line in lines]
    return [row | {name: row[name] and int(row[name]) for name in DENSE} for row in found]


def latencies(call: Callable[[], object], repeats: int) -> list[float]:
    """Milliseconds of each of so many calls, after three that warm up."""
    for _ in range(3):
        call()
    found, started = list[float](), time.perf_counter()
    while len(found) < repeats and (len(found) < 10 or time.perf_counter() - started < _LONGEST_S):
        found.append(1e3 * harness.seconds(call))
    return found


def main() -> None:
    parser = harness.parser(__doc__, 500)
    parser.add_argument("run", type=Path, help="a run on rows in Criteo's format")
    parser.add_argument("exports", nargs="+", type=Path, help="exports of it")
    options = parser.parse_args()
    trained = scorer_of_run(saved_run.find(options.run))
    scorers: dict[str, Scorer] = {"not exported": trained}
    for path in options.exports:
        predictor = Predictor(path)
        scorers[f"{predictor.bundle.embeddings} {predictor.bundle.program}"] = predictor
    rows, results = raw_rows(max(BATCHES)), list[dict[str, Any]]()
    for batch in BATCHES:
        some = rows[:batch]
        table = pa.Table.from_pylist(some)
        prepared = trained.transform.prepared(parse(table, trained.transform))
        for name, scorer in scorers.items():
            ways = {"dicts": some, "table": table}
            calls = {kind: (lambda given=given, by=scorer: by.predict(given)) for kind, given in ways.items()}
            calls["ids"] = lambda ids=prepared, by=scorer: by.score(ids)
            for kind, call in calls.items():
                found = latencies(call, options.repeats)
                p50, p99 = np.percentile(found, [50, 99])
                each = {"model": name, "given": kind, "rows": batch, "p50_ms": float(p50), "p99_ms": float(p99)}
                results.append(each | {"rows_per_s": 1e3 * batch / float(np.mean(found)), "calls": len(found)})
    note = "ids: rows of a prepared dataset, so that neither transform nor vocabularies are in it."
    harness.report({}, results, options.json, note)


if __name__ == "__main__":
    main()

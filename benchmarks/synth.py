"""How fast synthetic clicks are written, with all cores, synced.

`python benchmarks/synth.py [--rows 8000000] [--json]`: the named cardinalities, raw and as a dataset.
"""

import os
import sys
import tempfile
from pathlib import Path

import harness

from dlrm_dist.data.law import NAMED_CARDINALITIES, Law
from dlrm_dist.data.synthetic import write_clicks
from dlrm_dist.data.synthetic_dataset import write_dataset


def main() -> int:
    parser = harness.parser(__doc__, repeats=3)
    parser.add_argument("--rows", type=int, default=8_000_000)
    options = parser.parse_args()
    found = []
    for name in NAMED_CARDINALITIES:
        for form in ("parquet", "tsv"):
            rows = options.rows if form == "parquet" else options.rows // 4
            seconds = [measure(form, rows, Law(NAMED_CARDINALITIES[name])) for _ in range(options.repeats)]
            rate = harness.summary(rows / each for each in seconds)
            line = {"cardinalities": name, "format": form, "rows": rows, "median rows/s": rate["median"]}
            found.append({**line, "least": rate["min"], "most": rate["max"]})
    peak = harness.peak_mib()
    harness.report({"peak_MiB": peak}, found, options.json, f"peak {peak:,.0f} MiB")
    return 0


def measure(form: str, rows: int, law: Law) -> float:
    """Seconds until all is on the disk."""
    with tempfile.TemporaryDirectory() as folder:
        return harness.seconds(lambda: written(form, Path(folder, "clicks"), rows, law))


def written(form: str, out: Path, rows: int, law: Law) -> None:
    if form == "parquet":
        write_dataset(out, rows, "none", law=law)
    else:
        write_clicks(out.with_suffix(".tsv"), rows, law=law)
    os.sync()


if __name__ == "__main__":
    sys.exit(main())

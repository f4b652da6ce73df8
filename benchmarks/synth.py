"""How fast synthetic clicks are written, with all cores, synced.

`python benchmarks/synth.py [--rows 8000000] [--json]`: the named cardinalities, raw and as a dataset.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

from dlrm_dist.data.law import NAMED_CARDINALITIES, Law
from dlrm_dist.data.synthetic import write_clicks
from dlrm_dist.data.synthetic_dataset import write_dataset


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=8_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = []
    for name in NAMED_CARDINALITIES:
        for form in ("parquet", "tsv"):
            rows = options.rows if form == "parquet" else options.rows // 4
            seconds = [measure(form, rows, Law(NAMED_CARDINALITIES[name])) for _ in range(options.repeats)]
            rate = rows / statistics.median(seconds)
            found.append({"cardinalities": name, "format": form, "rows": rows, "rows_per_s": rate})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if options.json:
        print(json.dumps({"found": found, "peak_MiB": peak}, indent=1))
        return 0
    print("| cardinalities | format | rows | rows/s |\n|---|---|---|---|")
    for each in found:
        print(f"| {each['cardinalities']} | {each['format']} | {each['rows']:,} | {each['rows_per_s']:,.0f} |")
    print(f"\npeak {peak:,.0f} MiB")
    return 0


def measure(form: str, rows: int, law: Law) -> float:
    """Seconds until all is on the disk."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        if form == "parquet":
            write_dataset(Path(folder, "data"), rows, "none", law=law)
        else:
            write_clicks(Path(folder, "clicks.tsv"), rows, law=law)
        os.sync()
        return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())

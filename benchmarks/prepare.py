"""How fast raw rows become a dataset, and with how much memory: a process of its own for each way.

`python benchmarks/prepare.py [--rows 3000000] [--json]`: planted clicks in Kaggle's format, with hashed ids and with a
vocabulary, without and with the shuffle. Rates are end to end: from the raw file to the files on the disk (synced).
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dlrm_dist.data.options import PrepareOptions
from dlrm_dist.data.prepare import prepare
from dlrm_dist.data.synthetic import write_clicks

WAYS = {
    "hashed, in file order": PrepareOptions("kaggle", ids="hash", shuffle=False),
    "hashed, shuffled": PrepareOptions("kaggle", ids="hash"),
    "vocabulary, in file order": PrepareOptions("kaggle", shuffle=False),
    "vocabulary, shuffled": PrepareOptions("kaggle"),
}
REPEATS = 3


def main() -> int:
    if len(sys.argv) == 4 and sys.argv[1] in WAYS:
        print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))))
        return 0
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=3_000_000)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder when not given")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source = Path(folder, "clicks.tsv")
        write_clicks(source, options.rows)
        for way in list(WAYS) * REPEATS:
            with tempfile.TemporaryDirectory(dir=folder) as out:
                words = [sys.executable, __file__, way, str(source), f"{out}/data"]
                done = subprocess.run(words, check=True, capture_output=True, text=True)
            found.append({"way": way, **json.loads(done.stdout)})
    medians = [_median([each for each in found if each["way"] == way], options.rows) for way in WAYS]
    if options.json:
        print(json.dumps(medians, indent=1))
        return 0
    print("| way | rows/s | peak MiB |\n|---|---|---|")
    for each in medians:
        print(f"| {each['way']} | {each['rows_per_s']:,.0f} | {each['peak_MiB']:,.0f} |")
    return 0


def measure(way: str, source: Path, out: Path) -> dict[str, float]:
    """Seconds of one preparation, synced, and the process's peak memory."""
    started = time.perf_counter()
    prepare([source], out, WAYS[way])
    os.sync()
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def _median(found: list[dict[str, float]], rows: int) -> dict[str, float]:
    middle = sorted(found, key=lambda each: each["seconds"])[len(found) // 2]
    return {**middle, "rows_per_s": rows / middle["seconds"]}


if __name__ == "__main__":
    sys.exit(main())

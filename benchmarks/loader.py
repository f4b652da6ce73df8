"""How fast one core turns Parquet into batches.

`python benchmarks/loader.py [--rows 7864320] [--batch-size 8192] [--cardinalities planted] [--repeats 5] [--json]`:
a synthetic dataset, read by one rank on one core, from the page cache. Beside it what bounds it: PyArrow alone, from
the same files to Arrow columns.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before any library counts the cores

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dlrm_dist.data.law import NAMED_CARDINALITIES, Law
from dlrm_dist.data.loader import SplitReader
from dlrm_dist.data.schema import GROUP_ROWS, LANES, DatasetInfo
from dlrm_dist.data.synthetic_dataset import write_dataset


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10 * LANES * GROUP_ROWS)
    parser.add_argument("--batch-size", type=int, default=8192)
    parser.add_argument("--cardinalities", default="planted", choices=tuple(NAMED_CARDINALITIES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "data")
        info = write_dataset(path, options.rows, "none", law=Law(NAMED_CARDINALITIES[options.cardinalities]))
        megabytes = sum((path / part).stat().st_size for part in info.splits["train"].parts) / 1e6
        ways: dict[str, Callable[[], None]] = {
            "loader": lambda: batches(path, info, options.batch_size),
            "PyArrow alone": lambda: columns(path, info),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for way in ways:
            ways[way]()  # compiles, and fills the page cache
        for way in [*ways] * options.repeats:
            started = time.perf_counter()
            ways[way]()
            seconds[way].append(time.perf_counter() - started)
    result = {
        "rows": options.rows,
        "bytes_a_row": megabytes * 1e6 / options.rows,
        "rows_per_s": {way: [options.rows / each for each in sorted(found)[::-1]] for way, found in seconds.items()},
        "peak_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    if options.json:
        print(json.dumps(result, indent=1))
        return 0
    print("| way | median rows/s | least | most |\n|---|---|---|---|")
    for way, found in result["rows_per_s"].items():
        print(f"| {way} | {statistics.median(found):,.0f} | {found[0]:,.0f} | {found[-1]:,.0f} |")
    print(f"\n{options.rows:,} rows, {result['bytes_a_row']:.0f} bytes a row, peak {result['peak_MiB']:,.0f} MiB")
    return 0


def batches(path: Path, info: DatasetInfo, batch_size: int) -> None:
    """One epoch of one rank."""
    reader = SplitReader(path, info, "train", 0, 1)
    for _ in reader.batches(reader.order(batch_size, seed=0)):
        pass


def columns(path: Path, info: DatasetInfo) -> None:
    """All parts, decoded."""
    for part in info.splits["train"].parts:
        with pq.ParquetFile(path / part, memory_map=True) as file:
            file.read(use_threads=False)


if __name__ == "__main__":
    sys.exit(main())

"""How fast one core turns Parquet into batches.

`python benchmarks/loader.py [--rows 7864320] [--batch-size 8192] [--cardinalities planted] [--repeats 5] [--json]`:
a synthetic dataset, read by one rank on one core, from the page cache. Beside it what bounds it: PyArrow alone, from
the same files to Arrow columns.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before any library counts the cores

import harness
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dlrm_dist.data.law import NAMED_CARDINALITIES, Law
from dlrm_dist.data.loader import SplitReader
from dlrm_dist.data.schema import GROUP_ROWS, LANES, DatasetInfo
from dlrm_dist.data.synthetic_dataset import write_dataset


def main() -> int:
    parser = harness.parser(__doc__, repeats=5)
    parser.add_argument("--rows", type=int, default=10 * LANES * GROUP_ROWS)
    parser.add_argument("--batch-size", type=int, default=8192)
    parser.add_argument("--cardinalities", default="planted", choices=tuple(NAMED_CARDINALITIES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "data")
        info = write_dataset(path, options.rows, "none", law=Law(NAMED_CARDINALITIES[options.cardinalities]))
        size = sum((path / part).stat().st_size for part in info.splits["train"].parts)
        ways: dict[str, Callable[[], float]] = {
            "loader": lambda: harness.seconds(lambda: batches(path, info, options.batch_size)),
            "PyArrow alone": lambda: harness.seconds(lambda: columns(path, info)),
        }
        harness.interleaved(ways, 1)  # compiles, and fills the page cache
        found = harness.interleaved(ways, options.repeats)
    rows = []
    for way, seconds in found.items():
        rate = harness.summary(options.rows / each for each in seconds)
        rows.append({"way": way, "median rows/s": rate["median"], "least": rate["min"], "most": rate["max"]})
    result = {"rows_read": options.rows, "bytes_a_row": size / options.rows, "peak_MiB": harness.peak_mib()}
    note = f"{options.rows:,} rows, {result['bytes_a_row']:.0f} bytes a row, peak {result['peak_MiB']:,.0f} MiB"
    harness.report(result, rows, options.json, note)
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

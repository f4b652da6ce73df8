"""Datasets whose every row can be recognised, and commands run as a user runs them."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa

from dlrm_dist.data.schema import Category, DatasetInfo, Split
from dlrm_dist.data.vocabulary import id_type
from dlrm_dist.data.writer import Layout, columns_schema, write_split
from dlrm_dist.local_ranks import python

ROOT = Path(__file__).resolve().parents[1]
DENSE = ("I1", "I2")
LANES, GROUP_ROWS = 12, 4
MODULUS = 7
"""Rows of the second table."""


def numbered_dataset(
    folder: Path,
    splits: dict[str, int],
    lanes: int = LANES,
    group_rows: int = GROUP_ROWS,
    table_rows: int = 10_000,
) -> DatasetInfo:
    """A dataset of splits with so many rows each; row n has I1 = C1 = n, C2 = n % 7, and a click if n % 3 == 0."""
    categories = (Category(name="C1", rows=table_rows), Category(name="C2", rows=MODULUS))
    schema = columns_schema(DENSE, categories, {})
    folder.mkdir()
    written = {}
    for name, rows in splits.items():
        number = np.arange(rows)
        columns = {
            "label": pa.array((number % 3 == 0).astype(np.uint8)),
            "I1": pa.array(number.astype(np.float32)),
            "I2": pa.array(np.sin(number).astype(np.float32)),
            "C1": pa.array(number).cast(id_type(table_rows)),
            "C2": pa.array((number % MODULUS).astype(np.int32)),
        }
        written[name] = write_table(pa.table(columns), folder / name, schema, Layout(lanes, group_rows))
    info = DatasetInfo(
        dense=DENSE, categories=categories, lanes=lanes, group_rows=group_rows, splits=written, transform={}
    )
    info.write(folder)
    return info


def write_table(table: pa.Table, folder: Path, schema: pa.Schema, layout: Layout) -> Split:
    """Write a table as a split."""
    with ThreadPoolExecutor(2) as pool:
        return write_split(
            lambda start, stop: table[start:stop].combine_chunks(), len(table), folder, schema, layout, pool
        )


def assert_refused(done: subprocess.CompletedProcess[str], said: str) -> None:
    """A user's mistake: exit code 2, one line on stderr that says it."""
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def command(*words: str | Path) -> list[str]:
    """The command line of a program of this environment's `bin` (or "python")."""
    program, *rest = map(str, words)
    path = [] if program == "python" else [str(Path(sys.executable).with_name(program))]
    return [python(), *path, *rest]


def run_command(
    *words: str | Path, folder: Path, timeout: float = 120, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a program of this environment's `bin` (or "python") in `folder`, as from a shell without a launcher."""
    env = {key: value for key, value in os.environ.items() if not key.endswith(("RANK", "WORLD_SIZE"))}
    return subprocess.run(
        command(*words),
        cwd=folder,
        env={**env, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )

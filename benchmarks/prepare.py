"""How fast raw rows become a dataset, and with how much memory: a process of its own for each way.

`python benchmarks/prepare.py [--rows 3000000] [--cardinalities planted] [--exponent 1] [--way "hashed, shuffled"]
[--source FILE] [--json]`: clicks in Kaggle's format, with hashed ids and with a vocabulary, without and with the
shuffle. Rates are end to end: from the raw file to the files on the disk (synced). Beside them, on the same file, what
others do: TorchRec's own script (on its first rows; needs iopath), and a few lines of Polars, where they are installed.
"""

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dlrm_dist.data.law import NAMED_CARDINALITIES, Law
from dlrm_dist.data.options import PrepareOptions
from dlrm_dist.data.prepare import prepare
from dlrm_dist.data.synthetic import write_clicks

WAYS = {
    "hashed, in file order": PrepareOptions("kaggle", ids="hash", shuffle=False),
    "hashed, shuffled": PrepareOptions("kaggle", ids="hash"),
    "vocabulary, in file order": PrepareOptions("kaggle", shuffle=False),
    "vocabulary, shuffled": PrepareOptions("kaggle"),
}
TORCHREC, POLARS = "TorchRec's tsv_to_npys", "Polars, hashed, in file order"
TORCHREC_ROWS = 200_000
HASH_ROWS = 1_000_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="3000000", help="numbers of rows, with commas between")
    parser.add_argument("--cardinalities", default="planted", help="a name, or the ids of every category")
    parser.add_argument("--exponent", type=float, default=1.0)
    parser.add_argument("--way", action="append", help="one of the ways; repeatable; all when not given")
    parser.add_argument(
        "--source", type=Path, help="a file to prepare, instead of one made here, which has --rows rows"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder when not given")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], Path(options.measure[1]), Path(options.measure[2]))))
        return 0
    found = [each for rows in options.rows.split(",") for each in table(int(rows), options)]
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    print("| rows | way | rows/s | peak MiB |\n|---|---|---|---|")
    for each in found:
        print(f"| {each['rows']:,} | {each['way']} | {each['rows_per_s']:,.0f} | {each['peak_MiB']:,.0f} |")
    return 0


def table(rows: int, options: argparse.Namespace) -> list[dict[str, float | str]]:
    """The median of each way."""
    peers = {TORCHREC: "iopath", POLARS: "polars"}
    ways = options.way or [*WAYS, *(peer for peer, needed in peers.items() if importlib.util.find_spec(needed))]
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source = options.source or Path(folder, "clicks.tsv")
        if not options.source:
            sizes = NAMED_CARDINALITIES.get(options.cardinalities) or (int(options.cardinalities),) * 26
            write_clicks(source, rows, law=Law(sizes, options.exponent))
        for way in ways * options.repeats:
            with tempfile.TemporaryDirectory(dir=folder) as out:
                words = [sys.executable, __file__, "--measure", way, str(source), f"{out}/data"]
                done = subprocess.run(words, check=True, capture_output=True, text=True)
            found[way].append(json.loads(done.stdout))
    result = []
    for way, each in found.items():
        middle = sorted(each, key=lambda one: one["seconds"])[len(each) // 2]
        done_rows = min(rows, TORCHREC_ROWS) if way == TORCHREC else rows
        result.append({"rows": done_rows, "way": way, "rows_per_s": done_rows / middle["seconds"], **middle})
    return result


def measure(way: str, source: Path, out: Path) -> dict[str, float]:
    """Seconds of one preparation, synced, and the process's peak memory."""
    work = {TORCHREC: _torchrec, POLARS: _polars}.get(way)
    if work is _torchrec:
        out.mkdir()
        with source.open("rb") as file, (out / "day_0").open("wb") as head:
            head.writelines(line for line, _ in zip(file, range(TORCHREC_ROWS), strict=False))
    started = time.perf_counter()
    if work:
        work(source, out)
    else:
        prepare([source], out, WAYS[way])
    os.sync()
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def _torchrec(source: Path, out: Path) -> None:
    from torchrec.datasets.criteo import BinaryCriteoUtils

    names = [str(out / f"day_0_{kind}.npy") for kind in ("dense", "sparse", "labels")]
    BinaryCriteoUtils.tsv_to_npys(str(out / "day_0"), *names)


def _polars(source: Path, out: Path) -> None:
    import polars as pl

    dense, categories = [f"I{i}" for i in range(1, 14)], [f"C{i}" for i in range(1, 27)]
    types = {"label": pl.UInt8} | dict.fromkeys(dense, pl.Int32) | dict.fromkeys(categories, pl.String)
    rows = pl.scan_csv(source, separator="\t", has_header=False, schema=types, quote_char=None)
    number = pl.col(categories).str.to_integer(base=16, strict=False, dtype=pl.Int64).fill_null(1 << 32)
    scaled = pl.col(dense).fill_null(0).clip(0).cast(pl.Float32).log1p()
    columns = rows.with_columns(scaled, (number % HASH_ROWS).cast(pl.Int32))
    columns.sink_parquet(out, compression="lz4", row_group_size=1 << 17, statistics=False)


if __name__ == "__main__":
    sys.exit(main())

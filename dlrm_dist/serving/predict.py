"""Predict: a probability for each row of some files, in their order, in bounded memory."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from dlrm_dist import progress
from dlrm_dist.errors import UserError
from dlrm_dist.serving.row_files import Piece, RowFiles
from dlrm_dist.serving.scorer import Scorer

PROBABILITY = "probability"


class Predicted(NamedTuple):
    """Rows that were scored, and how many a second."""

    rows: int
    rate: float


def check_out(out: Path, keep: Sequence[str]) -> None:
    """Refuse an output that exists or cannot be, before anything is read.

    Raises:
        UserError: it exists, its folder does not, or a column that is kept is named as the probability's is.
    """
    if out.exists() or out.is_symlink():
        raise UserError(f"{out}: is there already; name a file that does not exist")
    if not out.parent.is_dir():
        raise UserError(f"{out}: there is no folder {out.parent}; make it, or name a file elsewhere")
    twice = next((name for name in keep if name == PROBABILITY or list(keep).count(name) > 1), None)
    if twice:
        raise UserError(f"--keep {twice}: the output would have two columns of this name; leave one out")


def predict(scorer: Scorer, files: RowFiles, out: Path) -> Predicted:
    """Write a Parquet file of the kept columns and `probability`, float32: all of it, or nothing.

    Raises:
        UserError: a row is bad, or `out` cannot be written.
    """
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    started = time.perf_counter()
    try:
        with progress.bar("predict", "rows", files.rows) as shown:
            _write(scorer, files, temporary, shown.update)
        temporary.replace(out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}; nothing was left behind") from None
    finally:
        temporary.unlink(missing_ok=True)
    return Predicted(files.rows, files.rows / (time.perf_counter() - started))


def _write(scorer: Scorer, files: RowFiles, path: Path, told: Callable[[int], object]) -> None:
    writer: pq.ParquetWriter | None = None
    try:
        for piece in _ahead(files.pieces()):
            scores = pa.array(scorer.score(piece.prepared))
            kept = {} if piece.kept is None else {name: piece.kept[name] for name in piece.kept.column_names}
            table = pa.table({**kept, PROBABILITY: scores})
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table)
            told(table.num_rows)
    finally:
        if writer:
            writer.close()


def _ahead(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The pieces, of which the next is read while this one is scored."""
    with ThreadPoolExecutor(1, thread_name_prefix="rows") as pool:
        coming = pool.submit(next, pieces, None)
        while (piece := coming.result()) is not None:
            coming = pool.submit(next, pieces, None)
            yield piece

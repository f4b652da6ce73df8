"""Files of rows to score, in order: of a prepared dataset, or raw ones by the run's own transform."""

import codecs
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from dlrm_dist import cores
from dlrm_dist.checkpoint.saved_run import check_rows
from dlrm_dist.data import files, formats, raw_rows
from dlrm_dist.data.files import File
from dlrm_dist.data.kaggle import CATEGORIES, DENSE
from dlrm_dist.data.options import CRITEO
from dlrm_dist.data.schema import LABEL, DatasetInfo
from dlrm_dist.data.sources import Source
from dlrm_dist.data.text import TextSource
from dlrm_dist.data.transform import Transform
from dlrm_dist.errors import UserError, first_line

_READ_ROWS = 1 << 15
"""Rows that are read at a time."""


class Piece(NamedTuple):
    """Some consecutive rows: as a prepared dataset has them, and their columns that go along, if any do."""

    prepared: pa.Table
    kept: pa.Table | None


class _Parquet(NamedTuple):
    """A Parquet file: its name for messages, and how it is opened."""

    name: str
    open: Callable[[], pq.ParquetFile]


class RowFiles(NamedTuple):
    """Rows to score: their number, and they themselves, piece by piece in order."""

    rows: int
    pieces: Callable[[], Iterator[Piece]]


def prepared_rows(folder: Path, info: DatasetInfo, split: str, keep: Sequence[str]) -> RowFiles:
    """The rows of a split in the order of its files.

    Raises:
        UserError: the dataset has no such split, no rows in it, or no such column to keep.
    """
    check_rows(folder, info, split, 1)
    _check_kept(keep, (LABEL, *info.dense, *(each.name for each in info.categories), *filter(None, [info.weight])))
    paths = [folder / part for part in info.splits[split].parts]
    features = (*info.dense, *(each.name for each in info.categories))
    parts = [_Parquet(str(path), partial(pq.ParquetFile, path)) for path in paths]
    return RowFiles(info.splits[split].rows, partial(_parquet, parts, features, keep, pa.table))


def raw_rows_of(given: str, form: str, transform: Transform, keep: Sequence[str]) -> RowFiles:
    """The rows of raw files in the format of those that the run's dataset was made from; labels need not be there.

    Raises:
        UserError: the format is another; a file cannot be read or is empty; a column to keep is unknown.
    """
    wanted = CRITEO if transform.options.format in CRITEO else (transform.options.format,)
    if form not in wanted:
        raise UserError(f"--format {form}: the run was trained on rows in format {wanted[0]}; give rows in that format")
    found = files.find(given)
    if form == "parquet":
        return _raw_parquet(found, transform, keep)
    labelled = form not in CRITEO or _has_labels(found[0])
    with ThreadPoolExecutor(cores.usable()) as pool:
        opened = formats.open_sources({"rows": found}, transform.options, None, pool, labelled)
    known = (*([LABEL] if labelled else []), *raw_rows.raw_columns(transform))
    _check_kept(keep, known)
    sources = opened.sources["rows"]
    return RowFiles(sum(each.rows for each in sources), partial(_raw, sources, transform, known, keep))


def _has_labels(file: File) -> bool:
    """Whether the first line has a field more than Criteo's features."""
    with file.open() as stream:
        text = pa.CompressedInputStream(stream, "gzip") if file.path.endswith(".gz") else stream
        line = text.read(1 << 16).removeprefix(codecs.BOM_UTF8).split(b"\n")[0]
    return line.count(b"\t") != len(DENSE) + len(CATEGORIES) - 1


def _raw(sources: Sequence[Source], transform: Transform, known: Sequence[str], keep: Sequence[str]) -> Iterator[Piece]:
    criteo = transform.options.format in CRITEO
    for source in sources:
        if criteo and keep:
            text = cast(TextSource, source)
            for block in text.blocks(0, text.rows):
                parsed = text.parse(block).table
                yield Piece(transform.prepared(parsed), _fields(block.text, known, keep))
        else:
            for each in source.read((0, source.rows)):
                kept = each.table.select(keep) if keep else None
                yield Piece(transform.prepared(each.table), kept)


def _fields(text: bytes, known: Sequence[str], keep: Sequence[str]) -> pa.Table:
    """Columns of Criteo's lines as they stand there: integers, and text of hexadecimal digits; null where empty."""
    types = dict.fromkeys(known, pa.string()) | {name: pa.int64() for name in DENSE} | {LABEL: pa.uint8()}
    return csv.read_csv(
        pa.BufferReader(text),
        csv.ReadOptions(column_names=list(known), block_size=max(len(text), 1)),
        csv.ParseOptions(delimiter="\t", quote_char=False),
        csv.ConvertOptions(column_types=types, include_columns=list(keep), strings_can_be_null=True, null_values=[""]),
    )


def _raw_parquet(found: Sequence[File], transform: Transform, keep: Sequence[str]) -> RowFiles:
    parts = [_Parquet(file.name, partial(_open, file)) for file in found]
    rows = 0
    for file in parts:
        with readable(file.name), file.open() as parquet:
            names = parquet.schema_arrow.names
            rows += parquet.metadata.num_rows
        missing = [name for name in (*raw_rows.raw_columns(transform), *keep) if name not in names]
        if missing:
            raise UserError(f"{file.name}: lacks column {', '.join(missing[:3])}; it has {', '.join(names[:40])}")
    if not rows:
        raise UserError(f"{found[0].name}: is empty; allowed: at least one row")

    def prepare(table: pa.Table) -> pa.Table:
        return transform.prepared(raw_rows.parse(table, transform))

    return RowFiles(rows, partial(_parquet, parts, raw_rows.raw_columns(transform), keep, prepare))


def _open(file: File) -> pq.ParquetFile:
    return pq.ParquetFile(file.open())


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Say in one line that a Parquet file cannot be read.

    Raises:
        UserError: so.
    """
    try:
        yield
    except (OSError, ValueError) as error:  # pyarrow's own errors derive from these two
        raise UserError(f"{name}: cannot be read: {first_line(error)}; allowed: readable Parquet; mend it") from None


def _parquet(
    parts: Sequence[_Parquet],
    features: Sequence[str],
    keep: Sequence[str],
    prepare: Callable[[pa.Table], pa.Table],
) -> Iterator[Piece]:
    columns = list(dict.fromkeys([*features, *keep]))
    for part in parts:
        with readable(part.name), part.open() as parquet:
            for batch in parquet.iter_batches(_READ_ROWS, columns=columns):
                table = pa.Table.from_batches([batch])
                kept = table.select(keep) if keep else None
                yield Piece(prepare(table.select(features)), kept)


def _check_kept(keep: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in keep if name not in known]
    if unknown:
        raise UserError(
            f"--keep {','.join(unknown)}: no such column; allowed: {', '.join(itertools.islice(known, 60))}"
        )

"""Prepare: raw click logs into a dataset of Parquet parts, in bounded memory.

All sources form one sequence of rows, cut into train, valid and test. Where rows can be written as they come (known
ids, in file order), each part is made from its own range of the sources. Else the rows go through a spool on disk:
read (parsed, sorted by bucket of the shuffle), coded (a column at a time: a vocabulary, then its ids), written (each
part from its own rows of the spool). Every step works on pieces of its own, so threads do not wait for each other, and
what a killed process had finished is not done again.
"""

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from dlrm_dist.data import files, formats, spool
from dlrm_dist.data.files import File
from dlrm_dist.data.options import PrepareOptions, check, check_effects, transform_of
from dlrm_dist.data.parquet import read_schema
from dlrm_dist.data.request import Request, inputs_of, made_before
from dlrm_dist.data.schema import Category, DatasetInfo, Split
from dlrm_dist.data.sources import BAD_ROWS, Column, Columns, Log, Parsed, changed
from dlrm_dist.data.splits import RANDOM, drawn, split_lines, uniforms
from dlrm_dist.data.spool import Spool
from dlrm_dist.data.vocabulary import Encoder, Vocabulary, count_values, encoded, hash_encoder
from dlrm_dist.data.work_folder import work_folder
from dlrm_dist.data.writer import Layout, columns_schema, write_split
from dlrm_dist.errors import UserError

THREADS = min(16, os.cpu_count() or 1)
SEGMENT_ROWS, BUCKET_ROWS = 1 << 19, 1 << 20
"""Rows of a spool's segment, and (about) of a bucket of the shuffle, of which a thread holds one column at a time."""
_BASE, _SEGMENT, _COLUMN, _PART = 400 << 20, 400 << 20, 500 << 20, 500 << 20
"""Bytes that the process takes by itself, and at most for each thread that reads, codes a column, or writes a part."""


def prepare(
    sources: Sequence[str | Path], out: Path, options: PrepareOptions, best_auc: dict[str, float] | None = None
) -> DatasetInfo:
    """Write the dataset `out` from raw click logs: all of it, or nothing on an error.

    Where `out` is there already, made from the same files (names, sizes, times of change) in the same way, nothing is
    read or done. What a killed or interrupted process had done is found by the same call, which goes on from there.

    Args:
        sources: files (text may be .gz), folders of files, taken by name (hidden ones and subfolders are not), and
            globs, of this machine or as URLs.
        out: the folder to make.
        options: see there.
        best_auc: what goes into `dataset.json`, where the clicks were planted.

    Raises:
        UserError: an option, a source or a row is bad, or `out` cannot be written or is something else already.
    """
    check(options)
    schema = read_schema(options.schema) if options.schema else None
    check_effects(options, schema)
    found = _find(sources, out, options)
    layout = Layout(options.lanes, options.group_rows)
    inputs = inputs_of((file for group in found.values() for file in group), options.vocabulary)
    request = Request(transform_of(found, options, schema), layout, inputs)
    if out.exists() or out.is_symlink():
        return made_before(out, request)
    with work_folder(out, request._asdict()) as work:
        with ThreadPoolExecutor(THREADS) as pool:
            opened = formats.open_sources(found, options, schema, pool)
        lines = {name: [source.rows for source in group] for name, group in opened.sources.items()}
        splits = split_lines(lines, options.split, options.seed)
        log = Log([source for group in opened.sources.values() for source in group])
        made = _Preparation(log, opened.columns, splits, options, work).run(request.transform, layout)
        info = made.model_copy(update={"best_auc": best_auc or {}, "inputs": inputs})
        info.write(work)
    return info


def _find(sources: Sequence[str | Path], out: Path, options: PrepareOptions) -> dict[str, list[File]]:
    """The files of each split."""
    given = {"train": sources, "valid": options.valid, "test": options.test}
    found = {name: [file for each in group for file in files.find(each, out)] for name, group in given.items()}
    files.check_distinct([file for group in found.values() for file in group])
    if not found["train"]:
        raise UserError("split train: has no sources; allowed: at least one file; name some")
    return found


class _Preparation:
    """One run: the log, its columns and splits (rows of each, in order), and the folder to work in."""

    def __init__(self, log: Log, columns: Columns, splits: dict[str, int], options: PrepareOptions, work: Path) -> None:
        self._log, self._columns, self._splits, self._options, self._work = log, columns, splits, options, work
        self._encoders: dict[str, Encoder] = {
            each.name: hash_encoder(each.rows, each.missing) for each in columns.categories if each.ids == "hash"
        }
        self._in_vocabularies = [each for each in columns.categories if each.ids == "vocabulary"]
        self._buckets = -(-splits["train"] // BUCKET_ROWS) if options.shuffle else 1

    def run(self, transform: dict[str, Any], layout: Layout) -> DatasetInfo:
        """Write every split's parts, and the vocabularies."""
        steps = self._in_vocabularies or self._options.shuffle or self._options.split in RANDOM
        direct = not steps and self._options.on_bad_row == "error" and self._log.seekable
        rows = None if direct else self._read()
        sizes = {} if rows is None else self._code(rows)
        categories = tuple(
            Category(name=column.name, rows=sizes.get(column.name, column.rows), multi_hot=column.multi_hot)
            for column in self._columns.categories
        )
        schema = columns_schema(self._columns.dense, categories, transform, self._columns.weight)
        written: dict[str, Split] = {}
        start = 0
        with ThreadPoolExecutor(self._workers(_PART)) as pool, self._progress("write") as bar:
            for name, size in self._splits.items():
                if rows is None:
                    rows_of, size = partial(self._direct_rows, start), size
                else:
                    rows_of, size = partial(self._spooled_rows, rows, name), self._spooled_size(rows, name)
                if not size:
                    raise UserError(
                        f"split {name}: all its rows are bad; allowed: at least one good row; mend the sources"
                    )
                written[name] = write_split(rows_of, size, self._work / name, schema, layout, pool, bar)
                start += self._splits[name]
        faults = rows.faults if rows else Counter[str]()
        for folder in ("spool", "ids"):
            shutil.rmtree(self._work / folder, ignore_errors=True)
        return DatasetInfo(
            dense=self._columns.dense,
            categories=categories,
            lanes=layout.lanes,
            group_rows=layout.group_rows,
            splits=written,
            transform=transform,
            bad_rows={name: count for name, count in sorted(faults.items()) if name != BAD_ROWS},
            num_bad_rows=faults[BAD_ROWS],
            weight=self._columns.weight,
        )

    def _workers(self, each: int) -> int:
        """Threads that may work at a time where each takes so many bytes."""
        return max(1, min(THREADS, (self._options.memory - _BASE) // each))

    def _progress(self, what: str) -> Any:
        total = sum(self._splits.values())
        return tqdm(total=total, desc=f"prepare: {what}", unit=" rows", unit_scale=True, disable=None)

    # Reading: the log into the spool

    def _read(self) -> spool.Rows:
        groups = self._log.ranges(SEGMENT_ROWS)
        numbers = iter(range(sum(map(len, groups))))
        numbered = [[(next(numbers), each) for each in group] for group in groups]
        spooled = Spool(self._work / "spool", sum(map(len, groups)), self._buckets + len(self._splits) - 1)
        with ThreadPoolExecutor(self._workers(_SEGMENT)) as pool, self._progress("read") as bar:
            for _ in pool.map(partial(self._read_group, spooled, bar), numbered):
                pass
        return spooled.load()

    def _read_group(self, spooled: Spool, bar: Any, group: list[tuple[int, tuple[int, int]]]) -> None:
        """Spool ranges of rows that lie one behind another, from the first one on that is not there yet."""
        missing = [each for each in group if not spooled.has(each[0])]
        bar.update(sum(stop - start for number, (start, stop) in group if spooled.has(number)))
        if not missing:
            return
        pieces = self._log.read([missing[0][1][0], *(stop for _, (_, stop) in missing)])
        for number, (start, stop) in missing:
            found = self._gather(pieces, stop - start)
            keys = self._keys(start, stop)
            spooled.write(
                number, found.table, keys if found.kept is None else keys[found.kept], found.faults or Counter()
            )
            bar.update(stop - start)

    def _gather(self, pieces: Iterator[Parsed], lines: int) -> Parsed:
        """The next rows as one piece, with ids where they are known already."""
        tables, kept, faults, have = list[pa.Table](), list[npt.NDArray[np.int64]](), Counter[str](), 0
        while have < lines:
            piece = next(pieces, None)
            if piece is None:
                raise changed("the sources")
            tables.append(self._encoded(piece.table))
            kept.append(have + (np.arange(piece.lines) if piece.kept is None else piece.kept))
            faults.update(piece.faults or {})
            have += piece.lines
        return Parsed(pa.concat_tables(tables), lines, np.concatenate(kept) if faults else None, faults)

    def _encoded(self, table: pa.Table) -> pa.Table:
        columns = [
            encoded(column.combine_chunks(), self._encoders[name]) if name in self._encoders else column
            for name, column in zip(table.column_names, table.columns, strict=True)
        ]
        return pa.Table.from_arrays(columns, names=table.column_names)

    def _keys(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """The key of each line: its bucket in the shuffle, or for other splits the next numbers; int64 [lines]."""
        seed = self._options.seed
        if self._options.split in RANDOM:
            split = drawn(self._options.split, seed, start, stop - start)
        else:
            split = np.searchsorted(np.cumsum([*self._splits.values()]), np.arange(start, stop), side="right")
        buckets = (uniforms([seed, 0], start, stop - start) * self._buckets).astype(np.int64)
        return np.where(split == 0, buckets, self._buckets - 1 + split)

    # Coding: a column at a time, its vocabulary and its ids

    def _code(self, rows: spool.Rows) -> dict[str, int]:
        """Write vocabularies and ids; gives the rows of each column's table."""
        columns = self._in_vocabularies
        if columns:
            (self._work / "vocabulary").mkdir(exist_ok=True)
        workers = self._workers(_COLUMN)
        budget = (self._options.memory - _BASE) // workers
        bar = tqdm(total=len(columns), desc="prepare: code", unit=" columns", disable=None)
        with bar, ThreadPoolExecutor(workers) as pool:
            sizes = {}
            for column, size in zip(columns, pool.map(partial(self._code_column, rows, budget), columns), strict=True):
                sizes[column.name] = size
                bar.update()
        return sizes

    def _code_column(self, rows: spool.Rows, budget: int, column: Column) -> int:
        path = self._work / "vocabulary" / f"{column.name}.parquet"
        if path.exists():
            return pq.read_metadata(path).num_rows + 1
        vocabulary = self._vocabulary(rows, budget, column)
        encode = vocabulary.encoder()
        self._ids(column.name, 0).parent.mkdir(parents=True, exist_ok=True)
        for segment in range(rows.segments):
            values = rows.column(column.name, segment)
            batches = [pa.RecordBatch.from_arrays([encoded(each, encode)], names=[column.name]) for each in values]
            spool.write_batches(self._ids(column.name, segment), batches, batches[0].schema)
        vocabulary.write(path)
        return vocabulary.rows

    def _vocabulary(self, rows: spool.Rows, budget: int, column: Column) -> Vocabulary:
        given = self._options.vocabulary
        if given:
            folder = given / "vocabulary" if (given / "vocabulary").is_dir() else given
            return Vocabulary.read(folder / f"{column.name}.parquet")
        try:
            found = count_values(partial(self._train_values, rows, column.name), column.min_count, budget)
            return Vocabulary.of(found, column.min_count)
        except MemoryError:
            raise UserError(
                f"memory: the vocabulary of {column.name} does not fit in {budget:,} bytes, its share; allowed: up to "
                "all of this machine's; raise memory, or min_count"
            ) from None

    def _train_values(self, rows: spool.Rows, column: str) -> Iterator[pa.Array]:
        for segment in range(rows.segments):
            yield from rows.column(column, segment, self._buckets)

    def _ids(self, column: str, segment: int) -> Path:
        return self._work / "ids" / column / f"{segment:06d}.arrow"

    # Writing: the rows of a part

    def _direct_rows(self, first: int, start: int, stop: int) -> pa.Table:
        return self._gather(self._log.read([first + start, first + stop]), stop - start).table

    def _spooled_size(self, rows: spool.Rows, name: str) -> int:
        place = list(self._splits).index(name)
        return int(rows.counts[: self._buckets].sum() if place == 0 else rows.counts[self._buckets - 1 + place])

    def _spooled_rows(self, rows: spool.Rows, name: str, start: int, stop: int) -> pa.Table:
        ids = {column.name: partial(self._ids, column.name) for column in self._in_vocabularies}
        place = list(self._splits).index(name)
        if place or not self._options.shuffle:
            return rows.read(rows.slices(self._buckets - 1 + place, start, stop), ids)
        tables = []
        ends = np.cumsum(rows.counts[: self._buckets])
        first, last = np.searchsorted(ends, [start, stop - 1], side="right")
        for bucket in range(first, last + 1):
            size = int(rows.counts[bucket])
            if not size:
                continue
            before = int(ends[bucket]) - size
            order = np.random.default_rng([self._options.seed, 1 + bucket]).permutation(size)
            wanted = pa.array(order[max(0, start - before) : stop - before])
            whole = rows.read(rows.slices(bucket, 0, size), ids)
            tables.append(
                pa.Table.from_arrays([_taken(column, wanted) for column in whole.columns], whole.column_names)
            )
        return pa.concat_tables(tables)


def _taken(column: pa.ChunkedArray, order: pa.Array) -> pa.Array:
    return column.combine_chunks().take(order)

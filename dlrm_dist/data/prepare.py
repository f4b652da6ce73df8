"""Prepare: raw click logs into a dataset of Parquet parts, in bounded memory.

All sources form one sequence of rows, cut into train, valid and test. Where rows can be written as they come (known
ids, in file order), each part is made from its own range of the sources. Else the rows go through a spool on disk:
read (parsed, sorted by bucket of the shuffle), coded (a column at a time: a vocabulary, then its ids), written (each
part from its own rows of the spool). Every step works on pieces of its own, so threads do not wait for each other, and
what a killed process had finished is not done again.
"""

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

from dlrm_dist import cores, progress
from dlrm_dist.data import files, formats, spool
from dlrm_dist.data.coding import Coding, ids_file
from dlrm_dist.data.files import File
from dlrm_dist.data.options import PrepareOptions, check, check_effects, transform_of
from dlrm_dist.data.parquet import read_schema
from dlrm_dist.data.request import Request, inputs_of, made_before
from dlrm_dist.data.schema import Category, DatasetInfo, Split
from dlrm_dist.data.shuffled import Replaced, Shuffled
from dlrm_dist.data.sources import BAD_ROWS, Columns, Log, Parsed, changed
from dlrm_dist.data.splits import RANDOM, drawn, split_lines, uniforms
from dlrm_dist.data.spool import Chunk, Spool
from dlrm_dist.data.vocabulary import Encoder, encoded, hash_encoder
from dlrm_dist.data.work_folder import work_folder
from dlrm_dist.data.writer import Layout, RowsOf, columns_schema, write_split
from dlrm_dist.errors import UserError

THREADS = min(16, cores.usable())
SEGMENT_ROWS, BUCKET_ROWS = 1 << 19, 1 << 20
"""Rows of a spool's segment, and (about) of a bucket of the shuffle; a thread holds fewer where they are wide."""
_BASE, _SEGMENT, _COLUMN, _PART = 400 << 20, 400 << 20, 500 << 20, 500 << 20
"""Bytes that the process takes by itself, and at least for each thread that reads, codes a column, or writes a part."""
_CHUNKS, _TABLES, _PIECES, _LIST_PIECES = 5, 2, 3, 4
"""A thread's bytes over those of a chunk that it spools, of the tables to code a column, of a piece that it writes, of
one with lists (all in one column, maybe): what is copied, sorted or mapped besides."""
_LISTS = 1 << 32
"""Bytes of lists that 32 bits of an array's offsets are enough for."""


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
        made = _Preparation(log, opened.columns, splits, options, layout, work).run(request.transform)
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

    def __init__(
        self,
        log: Log,
        columns: Columns,
        splits: dict[str, int],
        options: PrepareOptions,
        layout: Layout,
        work: Path,
    ) -> None:
        self._log, self._columns, self._splits, self._options, self._work = log, columns, splits, options, work
        self._layout = layout
        self._encoders: dict[str, Encoder] = {
            each.name: hash_encoder(each.rows, each.missing)
            for each in columns.categories
            if each.ids in ("hash", "raw")
        }
        self._in_vocabularies = [each for each in columns.categories if each.ids == "vocabulary"]
        self._buckets = -(-splits["train"] // BUCKET_ROWS) if options.shuffle else 1
        self._lists = any(each.multi_hot for each in columns.categories)
        self._pieces = _LIST_PIECES if self._lists else _PIECES

    def run(self, transform: dict[str, Any]) -> DatasetInfo:
        """Write every split's parts, and the vocabularies."""
        steps = self._in_vocabularies or self._options.shuffle or self._options.split in RANDOM
        direct = not steps and self._options.on_bad_row == "error" and self._log.seekable and not self._lists
        rows = None if direct else self._read()
        sizes = {} if rows is None else self._code(rows)
        categories = tuple(
            Category(name=column.name, rows=sizes.get(column.name, column.rows), multi_hot=column.multi_hot)
            for column in self._columns.categories
        )
        schema = columns_schema(self._columns.dense, categories, transform, self._columns.weight)
        written = self._write(rows, schema)
        faults = rows.faults if rows else Counter[str]()
        for folder in ("spool", "counted", "ids", "shuffled"):
            shutil.rmtree(self._work / folder, ignore_errors=True)
        return DatasetInfo(
            dense=self._columns.dense,
            categories=categories,
            lanes=self._layout.lanes,
            group_rows=self._layout.group_rows,
            splits=written,
            transform=transform,
            bad_rows={name: count for name, count in sorted(faults.items()) if name != BAD_ROWS},
            num_bad_rows=faults[BAD_ROWS],
            weight=self._columns.weight,
        )

    def _workers(self, each: int) -> int:
        """Threads that may work at a time where each takes so many bytes."""
        return max(1, min(THREADS, (self._options.memory - _BASE) // each))

    def _share(self, each: int) -> int:
        """Bytes for each of so many threads."""
        return (self._options.memory - _BASE) // self._workers(each)

    def _progress(self, what: str) -> Any:
        return progress.bar(f"prepare: {what}", "rows", sum(self._splits.values()))

    # Reading: the log into the spool

    def _read(self) -> spool.Rows:
        groups = self._log.ranges(SEGMENT_ROWS)
        numbers = iter(range(sum(map(len, groups))))
        numbered = [[(next(numbers), each) for each in group] for group in groups]
        spooled = Spool(self._work / "spool", sum(map(len, groups)), self._buckets + len(self._splits) - 1)
        with ThreadPoolExecutor(self._workers(_SEGMENT)) as pool, self._progress("read") as bar:
            for _ in pool.map(partial(self._read_group, spooled, bar), numbered):
                pass
        pa.default_memory_pool().release_unused()
        return spooled.load()

    def _read_group(self, spooled: Spool, bar: Any, group: list[tuple[int, tuple[int, int]]]) -> None:
        """Spool ranges of rows that lie one behind another, from the first one on that is not there yet."""
        missing = [each for each in group if not spooled.has(each[0])]
        bar.update(sum(stop - start for number, (start, stop) in group if spooled.has(number)))
        if not missing:
            return
        pieces = self._log.read([missing[0][1][0], *(stop for _, (_, stop) in missing)])
        for number, (start, stop) in missing:
            spooled.write(number, self._chunks(pieces, start, stop))
            bar.update(stop - start)

    def _chunks(self, pieces: Iterator[Parsed], start: int, stop: int) -> Iterator[Chunk]:
        """The next rows, as many at a time as a thread may hold."""
        while start < stop:
            found = self._gather(pieces, stop - start, min(self._share(_SEGMENT) // _CHUNKS, _LISTS))
            keys = self._keys(start, start + found.lines)
            keys = keys if found.kept is None else keys[found.kept]
            start += found.lines
            size = self._written_bytes(found.table)
            self._check_width(spool.width_of(size, found.table.num_rows))
            yield Chunk(found.table, keys, found.faults, size)
            del found  # else the next one is made beside it

    def _written_bytes(self, table: pa.Table) -> int:
        """What rows take when they are written: raw values of 4 or 8 bytes became ids of 4."""
        size = table.nbytes
        for column in self._in_vocabularies:
            type_ = table[column.name].type
            wide = (type_.value_type if column.multi_hot else type_).bit_width == 64
            size -= table[column.name].nbytes // 2 if wide else 0
        return size

    def _part_bytes(self, width: float) -> int:
        """The least memory of a thread that writes parts: for a row group of rows so wide."""
        return max(_PART, int(self._pieces * width * self._layout.group_rows))

    def _check_width(self, width: float) -> None:
        """Raise a UserError if even a single thread cannot hold a row group of rows so wide."""
        least = _BASE + self._part_bytes(width)
        if least > self._options.memory:
            rows = f"a row group of {self._layout.group_rows:,} rows of {width:,.0f} bytes"
            raise UserError(
                f"memory: {self._options.memory:,} bytes are too few for {rows}; allowed: {least:,} at least; raise "
                "memory, or lower group_rows"
            )

    def _gather(self, pieces: Iterator[Parsed], lines: int, most_bytes: int | None = None) -> Parsed:
        """The next rows as one piece, with ids where they are known already: all of them, or as many as fit."""
        tables, kept, faults, have, size = list[pa.Table](), list[npt.NDArray[np.int64]](), Counter[str](), 0, 0
        while have < lines and (most_bytes is None or size < most_bytes):
            piece = next(pieces, None)
            if piece is None:
                raise changed("the sources")
            tables.append(self._encoded(piece.table))
            kept.append(have + (np.arange(piece.lines) if piece.kept is None else piece.kept))
            faults.update(piece.faults or {})
            have += piece.lines
            size += tables[-1].nbytes
        return Parsed(pa.concat_tables(tables), have, np.concatenate(kept) if faults else None, faults)

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
        if not columns:
            return {}
        budget = self._share(_COLUMN) // _TABLES
        coding = Coding(rows, self._work, self._options.vocabulary, self._options.max_rows, self._buckets, budget)
        shown = progress.bar("prepare: code", "columns", len(columns))
        with shown as bar, ThreadPoolExecutor(self._workers(_COLUMN)) as pool:
            sizes = {}
            for column, size in zip(columns, pool.map(coding.code, columns), strict=True):
                sizes[column.name] = size
                bar.update()
        pa.default_memory_pool().release_unused()
        return sizes

    # Writing: the rows of a part

    def _write(self, rows: spool.Rows | None, schema: pa.Schema) -> dict[str, Split]:
        written: dict[str, Split] = {}
        width = rows.width if rows else sum(field.type.bit_width // 8 for field in schema)
        each = self._part_bytes(width)
        most = max(1, int(min(self._share(each) // self._pieces, _LISTS) / max(1, width)))
        reads = self._direct_reads() if rows is None else self._spooled_reads(rows, most)
        with ThreadPoolExecutor(self._workers(each)) as pool, self._progress("write") as bar:
            for name, (rows_of, size) in reads.items():
                if not size:
                    raise UserError(
                        f"split {name}: all its rows are bad; allowed: at least one good row; mend the sources"
                    )
                written[name] = write_split(rows_of, size, self._work / name, schema, self._layout, pool, bar, most)
        return written

    def _direct_reads(self) -> dict[str, tuple[RowsOf, int]]:
        """How the rows of each split are read, and their number."""
        starts = np.cumsum([0, *self._splits.values()]).tolist()
        return {
            name: (partial(self._direct_rows, start), size)
            for start, (name, size) in zip(starts, self._splits.items(), strict=False)
        }

    def _direct_rows(self, first: int, start: int, stop: int) -> pa.Table:
        return self._gather(self._log.read([first + start, first + stop]), stop - start).table

    def _spooled_reads(self, rows: spool.Rows, most: int) -> dict[str, tuple[RowsOf, int]]:
        ids = {column.name: partial(ids_file, self._work, column.name) for column in self._in_vocabularies}
        shuffled = Shuffled(rows, ids, self._buckets, self._options.seed, most, self._work / "shuffled")
        reads: dict[str, tuple[RowsOf, int]] = {}
        for key, name in enumerate(self._splits, self._buckets - 1):
            reads[name] = partial(_in_order, rows, ids, key), int(rows.counts[key])
        if self._options.shuffle:
            reads["train"] = shuffled.read, int(rows.counts[: self._buckets].sum())
        return reads


def _in_order(rows: spool.Rows, replaced: Replaced, key: int, start: int, stop: int) -> pa.Table:
    return rows.read(rows.slices(key, start, stop), replaced)

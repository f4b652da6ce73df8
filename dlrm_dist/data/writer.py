"""The way of the rows into a split's Parquet parts: a shuffle that keeps to bounded memory, and stripes of row groups.

Every part is one stripe (see `dlrm_dist.data.schema`). A last stripe of fewer rows than lanes has row groups of zero
rows at its end, so that a split's number of row groups is always a multiple of its lanes.
"""

import json
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dlrm_dist.data.schema import LABEL, LARGEST_IDS_KEY, METADATA_KEY, Category, Split, stripe_group_rows
from dlrm_dist.data.vocabulary import id_type

BUCKET_ROWS = 1 << 20
MAX_BUCKETS = 256
"""Open files at a time. Beyond MAX_BUCKETS * BUCKET_ROWS rows the buckets grow, and with them the memory."""
WRITING = 2
"""Stripes that wait for a pool to write them: each holds its rows in memory."""
Ordered = tuple[pa.Table, npt.NDArray[np.int64] | None]
"""Rows, and the order to take them in (int64 [rows]; None: as they are)."""


class Layout(NamedTuple):
    """Lanes, and rows of a row group."""

    lanes: int
    group_rows: int


def columns_schema(
    dense: tuple[str, ...], categories: tuple[Category, ...], transform: dict[str, object], weight: str | None = None
) -> pa.Schema:
    """The Parquet schema of a dataset, with its column roles, vocabulary sizes and transform as metadata."""
    fields = [(LABEL, pa.uint8()), *((name, pa.float32()) for name in dense)]
    fields += [(category.name, _ids_type(category)) for category in categories]
    fields += [(weight, pa.float32())] if weight else []
    content = {
        "label": LABEL,
        "dense": dense,
        "categories": [category.model_dump() for category in categories],
        "transform": transform,
        "weight": weight,
    }
    metadata = {METADATA_KEY: json.dumps(content).encode()}
    return pa.schema([pa.field(name, type_, nullable=False) for name, type_ in fields], metadata)


def _ids_type(category: Category) -> pa.DataType:
    ids = id_type(category.rows)
    return pa.list_(pa.field("item", ids, nullable=False)) if category.multi_hot else ids


def rebatched(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of exactly `rows` rows, the last of fewer; there is no empty one."""
    waiting: list[pa.Table] = []
    have = 0
    for table in tables:
        while have + table.num_rows >= rows:
            cut = rows - have
            yield pa.concat_tables([*waiting, table.slice(0, cut)])
            waiting, have, table = [], 0, table.slice(cut)
        if table.num_rows:
            waiting.append(table)
            have += table.num_rows
    if waiting:
        yield pa.concat_tables(waiting)


def write_split(
    tables: Iterable[pa.Table], folder: Path, schema: pa.Schema, layout: Layout, pool: Executor | None = None
) -> Split:
    """Write a split's rows, in the order given, as `folder`/part-00000.parquet and so on.

    Args:
        tables: the rows; columns as in `schema`, in its order, without nulls.
        folder: to make for the split; its name is the split's name.
        schema: what `columns_schema` gives.
        layout: see there.
        pool: threads that write parts while the next rows come; without it, parts are written by the caller's thread.
    """
    folder.mkdir()
    rows, clicks, parts = 0, 0, list[str]()
    writing: deque[Future[None]] = deque()
    for stripe in rebatched(tables, layout.lanes * layout.group_rows):
        stripe = pa.Table.from_arrays(stripe.columns, schema=schema)
        path = folder / f"part-{len(parts):05d}.parquet"
        parts.append(f"{folder.name}/{path.name}")
        rows += stripe.num_rows
        clicks += pc.sum(stripe[LABEL]).as_py()
        if pool is None:
            _write_stripe(stripe, path, layout.lanes)
            continue
        writing.append(pool.submit(_write_stripe, stripe, path, layout.lanes))
        if len(writing) >= WRITING:
            writing.popleft().result()
    for future in writing:
        future.result()
    return Split(rows=rows, clicks=clicks, parts=tuple(parts))


def _write_stripe(stripe: pa.Table, path: Path, lanes: int) -> None:
    stripe = _with_largest_ids(stripe)
    with pq.ParquetWriter(
        path, stripe.schema, compression="lz4", use_dictionary=False, write_statistics=False
    ) as writer:
        start = 0
        for size in stripe_group_rows(stripe.num_rows, lanes):
            writer.write_table(stripe.slice(start, size), row_group_size=max(size, 1))
            start += size


def _with_largest_ids(stripe: pa.Table) -> pa.Table:
    """The table with its largest id of each category in the metadata, where a reader finds it without reading rows."""
    ids = {name: _flat(stripe[name]) for name in stripe.column_names if name != LABEL}
    ids = {name: values for name, values in ids.items() if pa.types.is_integer(values.type) and len(values)}
    largest = {name: pc.max(values).as_py() for name, values in ids.items()}
    return stripe.replace_schema_metadata({**(stripe.schema.metadata or {}), LARGEST_IDS_KEY: json.dumps(largest)})


def _flat(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.list_flatten(column) if pa.types.is_list(column.type) else column


class Spool:
    """Rows kept on disk between two passes, in the order they came or shuffled.

    A row is thrown into a random bucket file; later each bucket in turn is read whole and permuted. So every order of
    the rows is equally likely, and no more than a bucket is in memory. The order depends on the seed, the number of
    rows and BUCKET_ROWS, not on the sizes of the tables added. Without a shuffle there is one bucket, read in pieces.
    """

    def __init__(self, folder: Path, rows: int, seed: int | None) -> None:
        """Start an empty spool.

        Args:
            folder: for the bucket files; made here, removed after the last row was read.
            rows: how many rows will be added.
            seed: of the shuffle; None keeps the order.
        """
        self._folder, self._seed = folder, seed
        self._buckets = 1 if seed is None else min(MAX_BUCKETS, -(-rows // BUCKET_ROWS))
        self._random = np.random.default_rng([seed or 0, 0])
        self._writers: list[pa.RecordBatchFileWriter] = []
        folder.mkdir()

    def _path(self, bucket: int) -> Path:
        return self._folder / f"{bucket}.arrow"

    def add(self, table: pa.Table) -> None:
        """Add rows; all tables have the same columns."""
        if not self._writers:
            self._writers = [pa.ipc.new_file(self._path(i), table.schema) for i in range(self._buckets)]
        if self._buckets == 1:
            self._writers[0].write_table(table)
            return
        # One 64-bit draw a row, whatever the tables' sizes are: a Generator's integers would not promise that.
        bucket = (self._random.random(table.num_rows) * self._buckets).astype(np.int64)
        table = table.take(pa.array(np.argsort(bucket, kind="stable")))
        ends = np.cumsum(np.bincount(bucket, minlength=self._buckets))
        for writer, start, end in zip(self._writers, [0, *ends[:-1]], ends, strict=True):
            if end > start:
                writer.write_table(table.slice(start, end - start))

    def close(self) -> None:
        """End the writing, before `read`; after an error too, to give the open files back."""
        while self._writers:
            self._writers.pop().close()

    def read(self) -> Iterator[Ordered]:
        """The rows: pieces as they came, or the buckets and the order to take their rows in."""
        for bucket in range(self._buckets):
            with pa.memory_map(str(self._path(bucket))) as file:
                reader = pa.ipc.open_file(file)
                if self._seed is None:
                    for index in range(reader.num_record_batches):
                        yield pa.Table.from_batches([reader.get_batch(index)]), None
                else:
                    table = reader.read_all().combine_chunks()
                    yield table, np.random.default_rng([self._seed, 1 + bucket]).permutation(table.num_rows)
            self._path(bucket).unlink()
        self._folder.rmdir()

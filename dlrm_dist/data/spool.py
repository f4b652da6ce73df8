"""Rows kept on disk between reading and writing: segments in the order of the log, each sorted by key.

A row's key is its bucket of the shuffle, or its split where the order stays. All segments' rows of one key make a
sequence in the order of the log, whatever the segments are. A segment is as many files as its rows take in bounded
memory, and complete when all of them are there, so that a preparation that was killed goes on after the last one.
"""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dlrm_dist.data.taking import taken

_COUNTS, _FAULTS, _BYTES = b"counts", b"faults", b"bytes"
_FEW_ROWS, _FEW_BYTES = 1 << 11, 16 << 20
"""Below both, rows say little about the width of others."""


class Chunk(NamedTuple):
    """Rows that a thread holds at a time: their keys int64 [rows], what was wrong with bad rows, bytes when written."""

    table: pa.Table
    keys: npt.NDArray[np.int64]
    faults: Counter[str] | None = None
    bytes: int = 0


class Slice(NamedTuple):
    """Rows `start` to `stop` (exclusive) of a file's rows of a key."""

    file: int
    key: int
    start: int
    stop: int


class Spool:
    """Segments 0 to `segments` - 1 in a folder, rows by keys 0 to `keys` - 1."""

    def __init__(self, folder: Path, segments: int, keys: int) -> None:
        """Open a spool, with the segments that are there already."""
        self._folder, self._segments, self._keys = folder, segments, keys
        folder.mkdir(exist_ok=True)

    def has(self, segment: int) -> bool:
        """Whether the segment is complete."""
        return self._complete(segment).exists()

    def write(self, segment: int, chunks: Iterable[Chunk]) -> None:
        """Write a segment, a file for each chunk of its rows."""
        files = 0
        for files, chunk in enumerate(chunks, 1):
            self._write(self._path(segment, files - 1), chunk)
            del chunk  # else the next one is made beside it
        unfinished = self._complete(segment).with_suffix(".tmp")
        unfinished.write_text(str(files))
        unfinished.rename(self._complete(segment))

    def _write(self, path: Path, chunk: Chunk) -> None:
        """Write a file: a record batch for each key."""
        keys, table = chunk.keys, chunk.table
        counts = np.bincount(keys, minlength=self._keys)
        if np.any(keys[1:] < keys[:-1]):
            small = keys.astype(np.uint16) if self._keys <= 1 << 16 else keys  # which NumPy sorts by radix
            order = np.argsort(small, kind="stable")
            columns = [taken(column.combine_chunks(), order) for column in table.columns]
        else:
            columns = [column.combine_chunks() for column in table.columns]
        edges = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        faults = json.dumps(chunk.faults or {}).encode()
        metadata = {_COUNTS: counts.tobytes(), _FAULTS: faults, _BYTES: str(chunk.bytes).encode()}
        batch = pa.RecordBatch.from_arrays(columns, names=table.column_names)
        by_key = (batch[start:stop] for start, stop in itertools.pairwise(edges))
        write_batches(path, by_key, batch.schema.with_metadata(metadata))

    def load(self) -> "Rows":
        """All rows, when every segment is complete."""
        paths, counts, widths, faults = list[Path](), [], [0.0], Counter[str]()
        for segment in range(self._segments):
            paths += [self._path(segment, each) for each in range(int(self._complete(segment).read_text()))]
        for path in paths:
            with pa.OSFile(str(path)) as file:
                metadata = pa.ipc.open_file(file).schema.metadata
            counts.append(np.frombuffer(metadata[_COUNTS], np.int64))
            widths.append(width_of(int(metadata[_BYTES]), int(counts[-1].sum())))
            faults.update(json.loads(metadata[_FAULTS]))
        return Rows(paths, np.stack(counts), faults, max(widths))

    def _path(self, segment: int, chunk: int) -> Path:
        return self._folder / f"{segment:06d}-{chunk:06d}.arrow"

    def _complete(self, segment: int) -> Path:
        """The file that says of how many files a segment is."""
        return self._folder / f"{segment:06d}.files"


class Rows:
    """The rows of a complete spool."""

    def __init__(
        self, paths: list[Path], counts: npt.NDArray[np.int64], faults: Counter[str], width: float = 0
    ) -> None:
        """Take files, their rows of each key, int64 [files, keys], what was wrong with bad rows, and a row's width."""
        self._paths, self._counts, self.faults = paths, counts, faults
        self.width = width
        """Bytes of a row when it is written, in the file where rows are widest."""
        self.counts: npt.NDArray[np.int64] = counts.sum(axis=0)
        """Rows of each key."""
        self._before = np.concatenate([np.zeros_like(counts[:1]), np.cumsum(counts, axis=0)])

    @property
    def files(self) -> int:
        """How many there are, in the order of the log."""
        return len(self._counts)

    def column(self, name: str, file: int, keys: int | None = None) -> list[pa.Array]:
        """A column of a file, an array a key: of all of them, or of those below `keys`; mapped into memory."""
        with pa.memory_map(str(self._paths[file])) as mapped:
            reader = _columns(mapped, lambda each: each == name)
            return [reader.get_batch(key)[0] for key in range(reader.num_record_batches if keys is None else keys)]

    def slices(self, key: int, start: int, stop: int) -> list[Slice]:
        """Where the rows `start` to `stop` of a key's sequence are."""
        before = self._before[:, key]
        first, last = np.searchsorted(before, start, side="right") - 1, np.searchsorted(before, stop, side="left")
        found = []
        for file in range(first, last):
            inside = max(start, int(before[file])), min(stop, int(before[file + 1]))
            if inside[0] < inside[1]:
                found.append(Slice(file, key, *(int(row - before[file]) for row in inside)))
        return found

    def read(self, slices: list[Slice], replaced: Mapping[str, Callable[[int], Path]]) -> pa.Table:
        """The rows of some slices one behind another, columns in chunks.

        They are read, not mapped: with a file's large pages a map of a few rows counts as one of the whole file.

        Args:
            slices: what `slices` gives.
            replaced: of columns that are taken from other files, those files, by number: a record batch for each key.
        """
        return pa.concat_tables([self._read(each, replaced) for each in slices])

    def _read(self, at: Slice, replaced: Mapping[str, Callable[[int], Path]]) -> pa.Table:
        with pa.OSFile(str(self._paths[at.file])) as file:
            names = pa.ipc.open_file(file).schema.names
            batch = _columns(file, lambda each: each not in replaced).get_batch(at.key)[at.start : at.stop]
        if replaced:  # a copy, as the batch has room for all columns, read or not
            batch = batch.take(pa.array(np.arange(batch.num_rows)))
        found = dict(zip(batch.schema.names, batch.columns, strict=True))
        for name, path in replaced.items():
            with pa.OSFile(str(path(at.file))) as file:
                found[name] = pa.ipc.open_file(file).get_batch(at.key)[0][at.start : at.stop]
        return pa.table({name: found[name] for name in names})


def _columns(file: pa.NativeFile, wanted: Callable[[str], bool]) -> pa.ipc.RecordBatchFileReader:
    """A reader of some columns."""
    fields = [i for i, name in enumerate(pa.ipc.open_file(file).schema.names) if wanted(name)]
    return pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(included_fields=fields))


def width_of(size: int, rows: int) -> float:
    """Bytes of a row, where some rows take so many."""
    return size / max(1, rows if size > _FEW_BYTES else max(rows, _FEW_ROWS))


def write_batches(path: Path, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> None:
    """Write record batches as a file, which appears when it is complete."""
    unfinished = path.with_suffix(".tmp")
    with pa.ipc.new_file(str(unfinished), schema) as out:
        for batch in batches:
            out.write_batch(batch)
    unfinished.rename(path)

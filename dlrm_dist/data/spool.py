"""Rows kept on disk between reading and writing: segments in the order of the log, each sorted by key.

A row's key is its bucket of the shuffle, or its split where the order stays. All segments' rows of one key make a
sequence in the order of the log, whatever the segments are. A segment is a file that appears when it is complete, so
that a preparation that was killed goes on after the last one.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

_EDGES, _FAULTS = b"edges", b"faults"


class Slice(NamedTuple):
    """Rows `start` to `stop` (exclusive) of a segment."""

    segment: int
    start: int
    stop: int


class Spool:
    """Segments 0 to `segments` - 1 in a folder, rows by keys 0 to `keys` - 1."""

    def __init__(self, folder: Path, segments: int, keys: int) -> None:
        """Open a spool, with the segments that are there already."""
        self.folder, self._segments, self._keys = folder, segments, keys
        folder.mkdir(exist_ok=True)

    def has(self, segment: int) -> bool:
        """Whether the segment is complete."""
        return self._path(segment).exists()

    def write(self, segment: int, table: pa.Table, keys: npt.NDArray[np.int64], faults: Counter[str]) -> None:
        """Write a segment: its rows, their keys int64 [rows], and what was wrong with bad rows."""
        counts = np.bincount(keys, minlength=self._keys)
        if np.any(keys[1:] < keys[:-1]):
            small = keys.astype(np.uint16) if self._keys <= 1 << 16 else keys  # which NumPy sorts by radix
            order = pa.array(np.argsort(small, kind="stable"))
            columns = [column.combine_chunks().take(order) for column in table.columns]
        else:
            columns = [column.combine_chunks() for column in table.columns]
        edges = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        metadata = {_EDGES: edges.tobytes(), _FAULTS: json.dumps(faults).encode()}
        batch = pa.RecordBatch.from_arrays(columns, names=table.column_names)
        with (
            unfinished(self._path(segment)) as path,
            pa.ipc.new_file(path, batch.schema.with_metadata(metadata)) as out,
        ):
            out.write_batch(batch)

    def load(self) -> "Rows":
        """All rows, when every segment is complete."""
        edges, faults = [], Counter[str]()
        for segment in range(self._segments):
            with pa.memory_map(str(self._path(segment))) as file:
                metadata = pa.ipc.open_file(file).schema.metadata
            edges.append(np.frombuffer(metadata[_EDGES], np.int64))
            faults.update(json.loads(metadata[_FAULTS]))
        return Rows(self, np.stack(edges), faults)

    def batch(self, segment: int) -> pa.RecordBatch:
        """A segment's rows, mapped into memory."""
        with pa.memory_map(str(self._path(segment))) as file:
            return pa.ipc.open_file(file).get_batch(0)

    def _path(self, segment: int) -> Path:
        return self.folder / f"{segment:06d}.arrow"


class Rows:
    """The rows of a complete spool."""

    def __init__(self, spool: Spool, edges: npt.NDArray[np.int64], faults: Counter[str]) -> None:
        """Take where each key's rows begin in each segment, int64 [segments, keys + 1]."""
        self._spool, self._edges, self.faults = spool, edges, faults
        counts = np.diff(edges, axis=1)
        self.counts: npt.NDArray[np.int64] = counts.sum(axis=0)
        """Rows of each key."""
        self._before = np.concatenate([np.zeros_like(counts[:1]), np.cumsum(counts, axis=0)])

    def column(self, name: str, keys: int | None = None) -> Iterator[pa.Array]:
        """A column of each segment in turn: the rows of all keys, or of those below `keys`."""
        for segment, edges in enumerate(self._edges):
            column = self._spool.batch(segment)[name]
            yield column if keys is None else column[: edges[keys]]

    def slices(self, key: int, start: int, stop: int) -> list[Slice]:
        """Where the rows `start` to `stop` of a key's sequence are."""
        before = self._before[:, key]
        first, last = np.searchsorted(before, start, side="right") - 1, np.searchsorted(before, stop, side="left")
        found = []
        for segment in range(first, last):
            shift = int(self._edges[segment, key] - before[segment])
            inside = max(start, int(before[segment])), min(stop, int(before[segment + 1]))
            if inside[0] < inside[1]:
                found.append(Slice(segment, inside[0] + shift, inside[1] + shift))
        return found

    def read(self, slices: list[Slice], encoded: dict[str, Path]) -> pa.Table:
        """The rows of some slices one behind another, columns in chunks.

        Args:
            slices: what `slices` gives.
            encoded: files with ids of columns (a record batch a segment), which replace raw values.
        """
        batches = {each.segment: self._spool.batch(each.segment) for each in slices}
        names = next(iter(batches.values())).schema.names

        def column(name: str) -> pa.ChunkedArray:
            if name in encoded:
                with pa.memory_map(str(encoded[name])) as file:
                    reader = pa.ipc.open_file(file)
                    ids = {segment: reader.get_batch(segment)[0] for segment in batches}
            else:
                ids = {segment: batch[name] for segment, batch in batches.items()}
            return pa.chunked_array([ids[each.segment][each.start : each.stop] for each in slices])

        return pa.Table.from_arrays([column(name) for name in names], names=names)


@contextlib.contextmanager
def unfinished(path: Path) -> Iterator[str]:
    """Another path to write to, which takes the name `path` when all is written."""
    other = path.with_suffix(".tmp")
    yield str(other)
    other.rename(path)

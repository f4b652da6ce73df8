"""Rows kept on disk between reading and writing: segments in the order of the log, each sorted by key.

A row's key is its bucket of the shuffle, or its split where the order stays. All segments' rows of one key make a
sequence in the order of the log, whatever the segments are. A segment is a file that appears when it is complete, so
that a preparation that was killed goes on after the last one.
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

_COUNTS, _FAULTS = b"counts", b"faults"


class Slice(NamedTuple):
    """Rows `start` to `stop` (exclusive) of a segment's rows of a key."""

    segment: int
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
        return self.path(segment).exists()

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
        metadata = {_COUNTS: counts.tobytes(), _FAULTS: json.dumps(faults).encode()}
        batch = pa.RecordBatch.from_arrays(columns, names=table.column_names)
        by_key = (batch[start:stop] for start, stop in itertools.pairwise(edges))
        write_batches(self.path(segment), by_key, batch.schema.with_metadata(metadata))

    def load(self) -> "Rows":
        """All rows, when every segment is complete."""
        counts, faults = [], Counter[str]()
        for segment in range(self._segments):
            with pa.OSFile(str(self.path(segment))) as file:
                metadata = pa.ipc.open_file(file).schema.metadata
            counts.append(np.frombuffer(metadata[_COUNTS], np.int64))
            faults.update(json.loads(metadata[_FAULTS]))
        return Rows(self.path, np.stack(counts), faults)

    def path(self, segment: int) -> Path:
        """A segment's file: a record batch for each key."""
        return self._folder / f"{segment:06d}.arrow"


class Rows:
    """The rows of a complete spool."""

    def __init__(self, path: Callable[[int], Path], counts: npt.NDArray[np.int64], faults: Counter[str]) -> None:
        """Take segments' files, their rows of each key, int64 [segments, keys], and what was wrong with bad rows."""
        self._path, self._counts, self.faults = path, counts, faults
        self.counts: npt.NDArray[np.int64] = counts.sum(axis=0)
        """Rows of each key."""
        self._before = np.concatenate([np.zeros_like(counts[:1]), np.cumsum(counts, axis=0)])

    @property
    def segments(self) -> int:
        """How many there are."""
        return len(self._counts)

    def column(self, name: str, segment: int, keys: int | None = None) -> list[pa.Array]:
        """A column of a segment, an array a key: of all of them, or of those below `keys`; mapped into memory."""
        with pa.memory_map(str(self._path(segment))) as file:
            reader = pa.ipc.open_file(file)
            only = pa.ipc.IpcReadOptions(included_fields=[reader.schema.get_field_index(name)])
            reader = pa.ipc.open_file(file, options=only)
            return [reader.get_batch(key)[0] for key in range(reader.num_record_batches if keys is None else keys)]

    def slices(self, key: int, start: int, stop: int) -> list[Slice]:
        """Where the rows `start` to `stop` of a key's sequence are."""
        before = self._before[:, key]
        first, last = np.searchsorted(before, start, side="right") - 1, np.searchsorted(before, stop, side="left")
        found = []
        for segment in range(first, last):
            inside = max(start, int(before[segment])), min(stop, int(before[segment + 1]))
            if inside[0] < inside[1]:
                found.append(Slice(segment, key, *(int(row - before[segment]) for row in inside)))
        return found

    def read(self, slices: list[Slice], replaced: Mapping[str, Callable[[int], Path]]) -> pa.Table:
        """The rows of some slices one behind another, columns in chunks.

        They are read, not mapped: with a file's large pages a map of a few rows counts as one of the whole file.

        Args:
            slices: what `slices` gives.
            replaced: of columns that are taken from other files, those files, by segment: a record batch for each key.
        """
        return pa.concat_tables([self._read(each, replaced) for each in slices])

    def _read(self, at: Slice, replaced: Mapping[str, Callable[[int], Path]]) -> pa.Table:
        with pa.OSFile(str(self._path(at.segment))) as file:
            table = pa.Table.from_batches([pa.ipc.open_file(file).get_batch(at.key)])
        for name, path in replaced.items():
            with pa.OSFile(str(path(at.segment))) as file:
                ids = pa.ipc.open_file(file).get_batch(at.key)[0]
            table = table.set_column(table.column_names.index(name), name, ids)
        return table[at.start : at.stop]


def write_batches(path: Path, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> None:
    """Write record batches as a file, which appears when it is complete."""
    unfinished = path.with_suffix(".tmp")
    with pa.ipc.new_file(str(unfinished), schema) as out:
        for batch in batches:
            out.write_batch(batch)
    unfinished.rename(path)

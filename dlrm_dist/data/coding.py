"""Coding: the raw values of spooled rows become ids, a column at a time, and its vocabulary is made or taken over."""

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dlrm_dist.data import spool
from dlrm_dist.data.counting import count_values, write_vocabulary
from dlrm_dist.data.sources import Column
from dlrm_dist.data.vocabulary import Encoder, Vocabulary, encoded, file_of, folder_of


class Coding:
    """The columns of spooled rows, of which the keys below `train_keys` are training rows."""

    def __init__(
        self, rows: spool.Rows, work: Path, given: Path | None, max_rows: int | None, train_keys: int, budget: int
    ) -> None:
        """Take the rows, the folder to work in, a folder of vocabularies or the most rows of a new one, if there are.

        `budget` is in bytes, for a column.
        """
        self._rows, self._work, self._train_keys, self._budget = rows, work, train_keys, budget
        self._given = given and folder_of(given)
        self._most_ids = max_rows and max_rows - 1
        (work / "vocabulary").mkdir(exist_ok=True)

    def code(self, column: Column) -> int:
        """Write a column's vocabulary and ids; gives the rows of its table."""
        path = file_of(self._work, column.name)
        if path.exists():
            return pq.read_metadata(path).num_rows + 1
        folder = self._work / "counted" / column.name
        vocabulary = self._vocabulary(column, folder)
        ids_file(self._work, column.name, 0).parent.mkdir(parents=True, exist_ok=True)
        for number, encode in enumerate(vocabulary.encoders(self._budget)):
            for file in range(self._rows.files):
                self._encode(column.name, file, encode, again=number > 0)
            del encode  # else the next one is made beside it
        vocabulary.move(path)
        shutil.rmtree(folder)
        return vocabulary.rows

    def _encode(self, name: str, file: int, encode: Encoder, again: bool) -> None:
        """Write the ids of a file's rows; `again` adds those of other values to the ids that are there."""
        values = self._rows.column(name, file)
        path = ids_file(self._work, name, file)
        schema = pa.schema([(name, encoded(values[0][:0], encode).type)])

        def batches() -> Iterator[pa.RecordBatch]:
            before = pa.ipc.open_file(pa.memory_map(str(path))) if again else None
            for key, each in enumerate(values):
                ids = encoded(each, partial(_added, encode, before.get_batch(key)[0]) if before else encode)
                yield pa.RecordBatch.from_arrays([ids], schema=schema)

        spool.write_batches(path, batches(), schema)

    def _vocabulary(self, column: Column, folder: Path) -> Vocabulary:
        """The vocabulary of a column, made in a folder, where it may be already."""
        path = folder / "vocabulary.parquet"
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            return Vocabulary(path)
        unfinished = path.with_suffix(".tmp")
        if self._given:
            Vocabulary.read(self._given / f"{column.name}.parquet", unfinished, self._budget)
        else:
            arrays = partial(self._train_values, column.name)
            partitions = count_values(arrays, folder, column.min_count, self._budget)
            missing = sum(array.null_count for array in arrays())
            write_vocabulary(partitions, missing if missing >= column.min_count else 0, unfinished, self._most_ids)
        unfinished.rename(path)
        return Vocabulary(path)

    def _train_values(self, column: str) -> Iterator[pa.Array]:
        for file in range(self._rows.files):
            yield from self._rows.column(column, file, self._train_keys)


def _added(encode: Encoder, before: pa.Array, values: pa.Array) -> pa.Array:
    """The ids of values, or those they have already: of the encoders of a vocabulary one knows a value at most."""
    have = before.flatten() if pa.types.is_list(before.type) else before
    return pa.array(np.maximum(encode(values), have))


def ids_file(work: Path, column: str, file: int) -> Path:
    """Where the ids of a file's rows are: a record batch for each key."""
    return work / "ids" / column / f"{file:06d}.arrow"

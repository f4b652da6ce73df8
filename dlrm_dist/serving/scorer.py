"""Rows to probabilities: raw or prepared, by a trained run or by an export of one."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dlrm_dist.checkpoint.saved_run import Columns, SavedRun
from dlrm_dist.data.raw_rows import RawRow, parse, table_of
from dlrm_dist.data.transform import Transform
from dlrm_dist.errors import UserError
from dlrm_dist.serving.bags import replace_tables
from dlrm_dist.serving.inputs import InputCodec
from dlrm_dist.serving.managed import IdMaps, read_maps
from dlrm_dist.serving.program import Probabilities, Program
from dlrm_dist.serving.weights import build_unsharded, open_weights, tables

BATCH_ROWS = 4096
"""Rows that are scored at a time: as quick as larger batches, and the ids and vectors of a batch stay small."""
Rows: TypeAlias = RawRow | Sequence[RawRow] | pa.Table | pa.RecordBatch | str | Path
"""A row as a dict, several, a table, or a Parquet file."""
Scores = npt.NDArray[np.float32]


class Scorer:
    """A program with what its inputs are made by: transform and vocabularies, in the folder of a run or an export.

    Args:
        columns: of the run, or the export.
        program: gives probabilities.
        maps: of the categories whose tables have managed collisions.
    """

    def __init__(self, columns: Columns, program: Program, maps: IdMaps) -> None:
        self.columns, self._program = columns, program
        self._codec = InputCodec(columns, maps, "the rows")

    @cached_property
    def transform(self) -> Transform:
        """From raw rows to prepared ones.

        Raises:
            UserError: the run's dataset was made without raw rows; a vocabulary is missing or damaged.
        """
        return Transform(self.columns.folder, self.columns.info)

    def predict(self, rows: Rows, prepared: bool = False) -> Scores:
        """The probability of a click for each row, float32 [rows], in the rows' order.

        Args:
            rows: raw values by the raw columns' names: a dict, several, an Arrow table, or a Parquet file. In a dict an
                absent column, or None, is a missing value; a table has all columns.
            prepared: they are rows of a prepared dataset instead: transformed numbers, and ids.

        Raises:
            UserError: a column is missing or unknown, or a value is not possible.
        """
        table = self._table(rows, prepared)
        if not table.num_rows:
            return np.empty(0, np.float32)
        return self.score(table if prepared else self.transform.prepared(parse(table, self.transform)))

    def _table(self, rows: Rows, prepared: bool) -> pa.Table:
        if isinstance(rows, pa.Table):
            return rows
        if isinstance(rows, pa.RecordBatch):
            return pa.Table.from_batches([rows])
        if isinstance(rows, str | Path):
            try:
                return pq.read_table(rows)
            except (OSError, ValueError) as error:  # pyarrow's own errors derive from these two
                raise UserError(
                    f"{rows}: cannot be read: {str(error).splitlines()[0]}; give readable Parquet"
                ) from None
        if prepared:
            raise UserError(
                "prepared rows come as an Arrow table or a Parquet file, whose columns have types; give one"
            )
        return table_of([rows] if isinstance(rows, Mapping) else rows, self.transform)

    def score(self, table: pa.Table) -> Scores:
        """The probability of each row of a prepared dataset, float32 [rows].

        Raises:
            UserError: a column is missing or of another type, or an id lies outside its table.
        """
        found = []
        with torch.no_grad():
            for start in range(0, table.num_rows, BATCH_ROWS):
                found.append(self._program(*self._codec.inputs(table[start : start + BATCH_ROWS])).numpy())
        return np.concatenate(found)


def scorer_of_run(saved: SavedRun) -> Scorer:
    """A trained run's scorer in this process, in the run's precisions; all tables are in memory.

    Raises:
        UserError: the checkpoint is damaged, or of another model.
    """
    source = open_weights(saved)
    model = build_unsharded(saved, source)
    bags = replace_tables(model, [each.name for each in saved.info.categories], saved.config.model.table_precision)
    for table in tables(bags.names, source):
        bags.fill(table.name, table.weight)
    program = Probabilities(model, saved.config.train.precision == "bf16")
    return Scorer(saved.columns, program, read_maps(saved.config.model, source))

"""Rows of a prepared dataset as the tensors that a program takes."""

import logging

import numpy as np
import pyarrow as pa
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_dist.checkpoint.saved_run import Columns
from dlrm_dist.data.rows import RowCodec
from dlrm_dist.data.schema import LABEL
from dlrm_dist.errors import UserError
from dlrm_dist.serving.managed import IdMaps
from dlrm_dist.serving.program import Inputs

logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)  # a remark on how TorchRec's tensors are made


class InputCodec:
    """The way from columns to tensors, the same as in training: ids are expanded, and mapped to rows, where they were.

    Args:
        columns: of the run.
        maps: of the categories whose tables have managed collisions.
        name: what messages call the rows.
    """

    def __init__(self, columns: Columns, maps: IdMaps, name: str) -> None:
        info = columns.info.model_copy(update={"weight": None})
        self._name, self._columns = name, (*info.dense, *(each.name for each in info.categories))
        self._codec = RowCodec(name, info, columns.expand, 1)
        self._maps = maps
        self.features = tuple(each.name for each in info.categories)

    def inputs(self, rows: pa.Table) -> Inputs:
        """Dense columns (float32) and ids, whatever else is there, of one row or more.

        Raises:
            UserError: a column is missing or of another type, or an id lies outside its table.
        """
        missing = [name for name in self._columns if name not in rows.column_names]
        if missing:
            raise UserError(f"{self._name} lack column {', '.join(missing[:3])}; allowed: rows as prepare writes them")
        count = rows.num_rows
        labels = pa.array(np.zeros(count, np.uint8))
        whole = rows.select(self._columns).append_column(LABEL, labels).combine_chunks()
        self._check_types(whole)
        decoded = self._codec.decode(whole, np.arange(count, dtype=np.uint32), 1)
        batch = self._codec.batch([decoded], count, count)
        lengths = batch.sparse.lengths().view(len(self.features), count)
        return Inputs(batch.dense, self._rows_of(batch.sparse), lengths)

    def _rows_of(self, sparse: KeyedJaggedTensor) -> torch.Tensor:
        """The ids of all categories one behind another, as rows of their tables."""
        if not self._maps:
            return sparse.values()
        parts = zip(self.features, sparse.values().split(sparse.length_per_key()), strict=True)
        return torch.cat([self._maps[name].rows_of(ids) if name in self._maps else ids for name, ids in parts])

    def _check_types(self, rows: pa.Table) -> None:
        wrong = [name for name in self._columns[: -len(self.features)] if rows.schema.field(name).type != pa.float32()]
        wrong += [name for name in self.features if not _is_ids(rows.schema.field(name).type)]
        if wrong:
            found = rows.schema.field(wrong[0]).type
            raise UserError(f"{self._name}: column {wrong[0]} has {found}; allowed: float32 and ids, as prepare writes")


def _is_ids(type_: pa.DataType) -> bool:
    return type_ in (pa.int32(), pa.int64()) or (pa.types.is_list(type_) and _is_ids(type_.value_type))

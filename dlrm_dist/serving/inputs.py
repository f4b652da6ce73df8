"""Rows of a prepared dataset as the tensors that a program takes."""

import numpy as np
import pyarrow as pa

from dlrm_dist.checkpoint.saved_run import SavedRun
from dlrm_dist.data.rows import RowCodec
from dlrm_dist.data.schema import LABEL
from dlrm_dist.errors import UserError
from dlrm_dist.serving.program import Inputs


class InputCodec:
    """The way from columns to tensors, the same as in training: a sample's ids are expanded where they were."""

    def __init__(self, saved: SavedRun, name: str) -> None:
        """Take the run, and what messages call the rows."""
        info = saved.info.model_copy(update={"weight": None})
        self._name, self._columns = name, (*info.dense, *(each.name for each in info.categories))
        self._codec = RowCodec(name, info, saved.config.data.expand_multi_hot, 1)
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
        return Inputs(batch.dense, batch.sparse.values(), batch.sparse.lengths().view(len(self.features), count))

    def _check_types(self, rows: pa.Table) -> None:
        wrong = [name for name in self._columns[: -len(self.features)] if rows.schema.field(name).type != pa.float32()]
        wrong += [name for name in self.features if not _is_ids(rows.schema.field(name).type)]
        if wrong:
            found = rows.schema.field(wrong[0]).type
            raise UserError(f"{self._name}: column {wrong[0]} has {found}; allowed: float32 and ids, as prepare writes")


def _is_ids(type_: pa.DataType) -> bool:
    return type_ in (pa.int32(), pa.int64()) or (pa.types.is_list(type_) and _is_ids(type_.value_type))

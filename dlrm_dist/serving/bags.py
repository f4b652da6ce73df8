"""Embedding tables for scoring alone: FBGEMM's inference kernel over rows of 4 to 32 bits a number.

In place of a model's EmbeddingBagCollection. TorchRec's own quantised collection does the same, but what torch.export
makes of its jagged tensors takes 45 ms for a single row, and of this module 0.5 (26 tables, two cores).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_inference import IntNBitTableBatchedEmbeddingBagsCodegen
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, get_embedding_names_by_table
from torchrec.sparse.jagged_tensor import KeyedTensor

from dlrm_dist.errors import UserError
from dlrm_dist.models.click_model import ClickModel

Precision = Literal["fp32", "fp16", "int8", "int4"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
_BITS = {"int8": 8, "int4": 4}
_FLOATS = {"fp32": torch.float32, "fp16": torch.float16}
_POOLING = {PoolingType.SUM: PoolingMode.SUM, PoolingType.MEAN: PoolingMode.MEAN}


class Bags(NamedTuple):
    """The ids of B rows in F features, in place of a KeyedJaggedTensor.

    Attributes:
        values: int32 or int64, one feature's ids behind another's.
        lengths: int32 [F, B], how many ids each row has.
    """

    values: Tensor
    lengths: Tensor


class InferenceBags(nn.Module):
    """Tables of one precision, filled one at a time; gives what the collection in its place gave.

    Args:
        tables: of the collection.
        features: in the order of the `Bags`.
        precision: of a number in a row; a row of int8 or int4 has a scale and an offset in fp16 besides.

    Attributes:
        names: of the tables.

    Raises:
        UserError: the tables' widths or pooling do not go with it.
    """

    def __init__(self, tables: Sequence[EmbeddingBagConfig], features: Sequence[str], precision: Precision) -> None:
        super().__init__()
        _check(tables, precision)
        self._precision = precision
        self.names = [table.name for table in tables]
        used = [feature for table in tables for feature in table.feature_names]
        self._outputs = [name for names in get_embedding_names_by_table(list(tables)) for name in names]
        self._widths = [table.embedding_dim for table in tables for _ in table.feature_names]
        order = [features.index(feature) for feature in used]
        self._is_in_order = order == list(range(len(features)))
        self.register_buffer("order", torch.tensor(order, dtype=torch.int32))
        self.kernel = IntNBitTableBatchedEmbeddingBagsCodegen(
            [
                (each.name, each.num_embeddings, each.embedding_dim, SparseType(precision), EmbeddingLocation.HOST)
                for each in tables
            ],
            feature_table_map=[place for place, table in enumerate(tables) for _ in table.feature_names],
            pooling_mode=_POOLING[tables[0].pooling],
            device="cpu",
            output_dtype=SparseType.FP32,
        )
        self.kernel.initialize_weights()

    def fill(self, table: str, weight: Tensor) -> None:
        """Set a table's rows, float [rows, columns]."""
        rows, scales = self.kernel.split_embedding_weights()[self.names.index(table)]
        if self._precision in _FLOATS:
            rows.copy_(weight.to(_FLOATS[self._precision]).contiguous().view(torch.uint8))
            return
        made = torch.ops.fbgemm.FloatOrHalfToFusedNBitRowwiseQuantizedSBHalf(weight, _BITS[self._precision])
        rows.copy_(made[:, : rows.shape[1]])
        scales.copy_(made[:, rows.shape[1] :])

    def forward(self, bags: Bags) -> KeyedTensor:
        """The sum (or mean) of each bag's rows, float32 [B, all columns]."""
        values, lengths = bags
        if not self._is_in_order:
            lengths, values, _ = torch.ops.fbgemm.permute_2D_sparse_data(self.order, lengths, values)
        offsets = torch.ops.fbgemm.asynchronous_complete_cumsum(lengths.flatten())
        return KeyedTensor(self._outputs, self._widths, self.kernel.forward(values, offsets))


def _check(tables: Sequence[EmbeddingBagConfig], precision: Precision) -> None:
    odd = next((table.name for table in tables if precision == "int4" and table.embedding_dim % 2), None)
    if odd:
        raise UserError(f"--embeddings int4: table {odd} has an odd number of columns; use int8, fp16 or fp32")
    if len({table.pooling for table in tables}) > 1:
        raise UserError("tables that sum and tables that average cannot be scored together; train with one pooling")


def collection_of(model: ClickModel) -> EmbeddingBagCollection:
    """A model's embedding tables, which are still there."""
    assert isinstance(model.embeddings, EmbeddingBagCollection)
    return model.embeddings


def replace_tables(model: ClickModel, features: Sequence[str], precision: Precision) -> InferenceBags:
    """Put tables for scoring in the place of a model's, which then takes `Bags`; they are yet to be filled.

    Raises:
        UserError: see `InferenceBags`.
    """
    bags = InferenceBags(collection_of(model).embedding_bag_configs(), features, precision)
    model.embeddings = bags
    return bags

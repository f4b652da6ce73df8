"""DLRM, the deep learning recommendation model of Naumov et al., arXiv 1906.00091, and what MLPerf made of it.

Three interactions: dot products (the paper; facebookresearch/dlrm), a low-rank cross network (MLPerf's DLRM-DCNv2) and
projection (torchrec's `DLRM_Projection`). `torchrec.models.dlrm` has the same networks: there the dot products take
twice as long on CPU (see `_DotProducts`), their input rows are not aligned, and nothing can be initialised by a seed.

Shape suffixes: B batch, N dense features, F embedding features, D embedding dim.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.sparse.jagged_tensor import KeyedTensor

from dlrm_dist.models.click_model import ClickModel
from dlrm_dist.models.interaction import CrossInteraction, DotInteraction, ProjectionInteraction
from dlrm_dist.models.mlp import MLP, nothing, regularised, relu


class DLRM(ClickModel):
    """Bottom MLP, embedding bags, an interaction of their outputs, top MLP.

    Args:
        num_dense: number of dense features.
        tables: all of one width.
        bottom_mlp: widths of the bottom MLP's layers, the last that of the tables.
        top_mlp: widths of the top MLP's layers, the last 1.
        interaction: a module with `out_features` that takes the dense vector and the embeddings.
        tables_device: where the tables are made; `meta` takes no memory.
        batch_norm: batch normalisation in the hidden layers of both MLPs.
        dropout: share of the top MLP's hidden columns that are dropped in training.
    """

    def __init__(
        self,
        num_dense: int,
        tables: Sequence[EmbeddingBagConfig],
        bottom_mlp: Sequence[int],
        top_mlp: Sequence[int],
        interaction: DotInteraction | CrossInteraction | ProjectionInteraction,
        tables_device: torch.device | None = None,
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(tables, tables_device)
        self.bottom_mlp = MLP(num_dense, bottom_mlp, regularised(batch_norm, 0.0), relu)
        self.interaction = interaction
        self.top_mlp = MLP(interaction.out_features, top_mlp, regularised(batch_norm, dropout), nothing)

    def logits(self, dense_BN: Tensor, embedded: KeyedTensor) -> Tensor:
        """Float [B, N] and F embeddings to logits, float [B]."""
        return self.top_mlp(self.interaction(self.bottom_mlp(dense_BN), embedded)).squeeze(1)

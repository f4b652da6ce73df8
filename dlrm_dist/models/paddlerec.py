"""PaddleRec's DLRM (PaddlePaddle/PaddleRec, models/rank/dlrm/net.py): the network behind its published AUC.

Unlike the paper's: one table for all slots; batch normalisation behind each ReLU; both behind the last layer too; two
logits with a softmax. There the dense vector is the last of those that are multiplied, here the first: the same pairs
in another order of the top MLP's columns.

Shape suffixes: B batch, N dense features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.sparse.jagged_tensor import KeyedTensor

from dlrm_dist.models.click_model import ClickModel
from dlrm_dist.models.interaction import DotInteraction
from dlrm_dist.models.mlp import MLP, relu_and_norm


class PaddleRecDLRM(ClickModel):
    """Bottom MLP, embedding bags, dot products, top MLP of two outputs, of which the difference is the logit.

    softmax([z0, z1])[1] = sigmoid(z1 - z0), and so the cross-entropy of the pair is the binary one of the difference:
    loss and metrics need to know nothing of the pair.

    Args:
        num_dense: number of dense features.
        tables: one table for all features.
        features: their names, in the order of the products.
        bottom_mlp: widths of the bottom MLP's layers, the last that of the tables.
        top_mlp: widths of the top MLP's layers, the last 2.
        tables_device: where the tables are made; `meta` takes no memory.
    """

    def __init__(
        self,
        num_dense: int,
        tables: Sequence[EmbeddingBagConfig],
        features: Sequence[str],
        bottom_mlp: Sequence[int],
        top_mlp: Sequence[int],
        tables_device: torch.device | None = None,
    ) -> None:
        super().__init__(tables, tables_device)
        self.bottom_mlp = MLP(num_dense, bottom_mlp, relu_and_norm)
        self.interaction = DotInteraction(features, bottom_mlp[-1])
        self.top_mlp = MLP(self.interaction.out_features, top_mlp, relu_and_norm)

    def logits(self, dense_BN: Tensor, embedded: KeyedTensor) -> Tensor:
        """Float [B, N] and the embeddings to logits, float [B]."""
        outputs_B2 = self.top_mlp(self.interaction(self.bottom_mlp(dense_BN), embedded))
        return outputs_B2[:, 1] - outputs_B2[:, 0]

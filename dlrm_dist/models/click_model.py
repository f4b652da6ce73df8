"""What every model is: embedding tables, and a network above them that gives each row a logit."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor


class ClickModel(nn.Module, ABC):
    """Embedding bags (sum pooling), and what a model adds above them.

    TorchRec's pipeline traces `forward` and `logits` down to modules without tables: control flow belongs into these.

    Args:
        tables: of which each may serve several features.
        tables_device: where they are made; `meta` takes no memory.
    """

    def __init__(self, tables: Sequence[EmbeddingBagConfig], tables_device: torch.device | None = None) -> None:
        super().__init__()
        self.embeddings: nn.Module = EmbeddingBagCollection(tables=list(tables), device=tables_device)

    def forward(self, dense_BN: Tensor, sparse: KeyedJaggedTensor) -> Tensor:
        """Float [B, N] and a jagged tensor with a key for each feature to logits, float [B]."""
        embedded = self.embeddings(sparse)  # begins their exchange between ranks, which the dense layers then hide
        return self.logits(dense_BN, embedded)

    @abstractmethod
    def logits(self, dense_BN: Tensor, embedded: KeyedTensor) -> Tensor:
        """Float [B, N] and the features' embeddings in any order to logits, float [B]."""

    def dense_parts(self) -> list[nn.Module]:
        """All but the tables."""
        return [part for part in self.children() if part is not self.embeddings]


def in_order(embedded: KeyedTensor, features: Sequence[str]) -> Tensor:
    """The embeddings as [B, sum of widths] in the order of `features`: a sharded collection has one of its own."""
    if embedded.keys() == list(features):
        return embedded.values()
    by_name = embedded.to_dict()
    return torch.cat([by_name[feature] for feature in features], dim=1)

"""Deep & Cross Network, Wang et al.: a cross and a deep network side by side over the same inputs.

Its layers are those of equations 1 to 5 of arXiv 1708.05123, without the batch normalisation of its experiments; the
cross network may be that of the second version, arXiv 2008.13535. Embeddings may be of different widths: the first
paper takes 6 * rows^(1/4).

Shape suffixes: B batch, N dense features, X = N + the embeddings' widths.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.sparse.jagged_tensor import KeyedTensor

from dlrm_dist.models.click_model import ClickModel, in_order
from dlrm_dist.models.mlp import MLP, regularised


class CrossNet(nn.Module):
    """x0 (x . w) + b + x, layer upon layer: equation 3.

    torchrec's VectorCrossNet is the same by products of [X, 1] with [1, 1] matrices, which take twice the time on CPU
    (forward and backward of 3 layers of 429 columns, 2,048 rows, one thread: 129 ms, and 63 so).
    """

    def __init__(self, columns: int, layers: int) -> None:
        super().__init__()
        self.kernels = nn.ParameterList(torch.empty(columns) for _ in range(layers))
        self.biases = nn.ParameterList(torch.zeros(columns) for _ in range(layers))

    def forward(self, x0_BX: Tensor) -> Tensor:
        """Float [B, X] to the same."""
        x_BX = x0_BX
        for kernel_X, bias_X in zip(self.kernels, self.biases, strict=True):
            x_BX = torch.addcmul(x_BX + bias_X, x0_BX, x_BX @ kernel_X.unsqueeze(1))
        return x_BX


class MatrixCrossNet(nn.Module):
    """x0 * (W x + b) + x, layer upon layer: equation 2 of arXiv 2008.13535.

    torchrec's CrossNet is the same by products of a matrix and one row's column.
    """

    def __init__(self, columns: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(columns, columns) for _ in range(layers))

    def forward(self, x0_BX: Tensor) -> Tensor:
        """Float [B, X] to the same."""
        x_BX = x0_BX
        for layer in self.layers:
            x_BX = torch.addcmul(x_BX, x0_BX, layer(x_BX))
        return x_BX


class Stacking(nn.Module):
    """The embeddings in the order of the features, and the dense features behind them: equation 2."""

    def __init__(self, features: Sequence[str]) -> None:
        super().__init__()
        self._features = tuple(features)

    def forward(self, dense_BN: Tensor, embedded: KeyedTensor) -> Tensor:
        """Float [B, N] and the embeddings to [B, X]."""
        return torch.cat([in_order(embedded, self._features), dense_BN], dim=1)


class DCN(ClickModel):
    """Embedding bags and dense features through a cross network and an MLP, and a linear layer over both outputs.

    Args:
        num_dense: number of dense features.
        tables: of any widths.
        features: their names, in the order of the inputs' columns.
        cross_layers: layers of the cross network.
        deep_mlp: widths of the MLP's layers.
        tables_device: where the tables are made; `meta` takes no memory.
        matrix: the cross network of the second version.
        batch_norm: batch normalisation in the MLP.
        dropout: share of the MLP's columns that are dropped in training.
    """

    def __init__(
        self,
        num_dense: int,
        tables: Sequence[EmbeddingBagConfig],
        features: Sequence[str],
        cross_layers: int,
        deep_mlp: Sequence[int],
        tables_device: torch.device | None = None,
        matrix: bool = False,
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(tables, tables_device)
        columns = num_dense + sum(table.embedding_dim * len(table.feature_names) for table in tables)
        self.stacking = Stacking(features)
        self.cross = (MatrixCrossNet if matrix else CrossNet)(columns, cross_layers)
        self.deep = MLP(columns, deep_mlp, regularised(batch_norm, dropout))
        self.combination = nn.Linear(columns + deep_mlp[-1], 1)

    def logits(self, dense_BN: Tensor, embedded: KeyedTensor) -> Tensor:
        """Float [B, N] and the embeddings to logits, float [B]."""
        x0_BX = self.stacking(dense_BN, embedded)
        return self.combination(torch.cat([self.cross(x0_BX), self.deep(x0_BX)], dim=1)).squeeze(1)

"""How DLRMs combine the dense vector with the embeddings.

Shape suffixes: B batch, F embedding features, D embedding dim, V = F + 1 vectors that interact, P = V (V - 1) / 2 of
their pairs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torchrec.models.dlrm import InteractionProjectionArch
from torchrec.modules.crossnet import LowRankCrossNet
from torchrec.sparse.jagged_tensor import KeyedTensor

from dlrm_dist.models.click_model import in_order
from dlrm_dist.models.mlp import MLP

_ALIGNMENT = 8
"""Columns of an interaction's output are a multiple of it, zeros behind: rows that begin at an odd float cost 2.6 ms of
a step of 60, in the products with the first layer of the top MLP (367 columns, 105 GFLOP/s; 368, 128)."""


class _DotProducts(torch.autograd.Function):
    """The first of V vectors, and behind it the dot products of pairs, and zeros.

    The gradient is one gather into a symmetric [V, V] and one product with the vectors. Autograd, from a product and an
    index_select, would scatter into zeros, multiply twice and add. Measured, one core, B 2,048, V 27, D 16, forward and
    backward: 4.4 ms, and 7.9 ms so.
    """

    @staticmethod
    def forward(vectors_BVD: Tensor, pairs_P: Tensor, places_VV: Tensor) -> Tensor:
        gram_BVV = torch.bmm(vectors_BVD, vectors_BVD.transpose(1, 2))
        pairs_BP = gram_BVV.flatten(1).index_select(1, pairs_P)
        columns = vectors_BVD.shape[2] + len(pairs_P)
        zeros = pairs_BP.new_zeros(pairs_BP.shape[0], -columns % _ALIGNMENT)
        return torch.cat([vectors_BVD[:, 0], pairs_BP, zeros], dim=1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        vectors_BVD, _, places_VV = inputs
        ctx.save_for_backward(vectors_BVD, places_VV)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        vectors_BVD, places_VV = ctx.saved_tensors
        batch, vectors, dim = vectors_BVD.shape
        gram_BVV = grad.index_select(1, places_VV).view(batch, vectors, vectors)
        gram_BVV.diagonal(dim1=1, dim2=2).zero_()
        grad_BVD = torch.bmm(gram_BVV, vectors_BVD)
        grad_BVD[:, 0] += grad[:, :dim]
        return grad_BVD, None, None


class DotInteraction(nn.Module):
    """All pairwise dot products of the dense vector and the embeddings, behind the dense vector."""

    def __init__(self, features: Sequence[str], embedding_dim: int) -> None:
        super().__init__()
        self._features = tuple(features)
        vectors = len(features) + 1
        self.out_features = embedding_dim + vectors * (vectors - 1) // 2
        self._indices: dict[tuple[tuple[str, ...], torch.device], tuple[Tensor, Tensor]] = {}

    def forward(self, dense_BD: Tensor, sparse: KeyedTensor) -> Tensor:
        """Float [B, D] and F embeddings, [B, F D] in any order, to [B, D + P], and up to 7 columns of zeros behind.

        The pairs are the strict upper triangle of the vectors' Gram matrix, by rows: the dense vector first, then the
        features in the order that was given.
        """
        vectors_BVD = torch.cat([dense_BD, sparse.values()], dim=1).unflatten(1, (-1, dense_BD.shape[1]))
        indices = self._indices_of(tuple(sparse.keys()), vectors_BVD.device)
        device = vectors_BVD.device.type
        if device == "meta" or not torch.is_autocast_enabled(device):
            return _DotProducts.apply(vectors_BVD, *indices)
        # On CPU such small products are slow in bf16: 7.9 ms where fp32 takes 1.2 (no AMX), B 2,048, V 27, D 16.
        vectors_BVD = vectors_BVD.to(torch.float32 if device == "cpu" else torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):
            return _DotProducts.apply(vectors_BVD, *indices)

    def _indices_of(self, keys: tuple[str, ...], device: torch.device) -> tuple[Tensor, Tensor]:
        """Where the pairs lie in the flat Gram matrix, int64 [P], and each of its entries in the output, int64 [V V].

        A sharded collection orders its output by sharding type: it is these that follow, instead of the vectors.
        """
        if (keys, device) not in self._indices:
            vectors = len(keys) + 1
            dim = self.out_features - vectors * (vectors - 1) // 2
            at = torch.tensor([0, *(1 + keys.index(feature) for feature in self._features)], device="cpu")
            rows, columns = at[torch.triu_indices(vectors, vectors, 1, device="cpu")]
            places = torch.zeros(vectors, vectors, dtype=torch.int64, device="cpu")
            places[rows, columns] = places[columns, rows] = dim + torch.arange(len(rows), device="cpu")
            self._indices[keys, device] = (rows * vectors + columns).to(device), places.flatten().to(device)
        return self._indices[keys, device]


class CrossInteraction(nn.Module):
    """The dense vector and the embeddings through a low-rank cross network: DCN v2, Wang et al., arXiv 2008.13535."""

    def __init__(self, features: Sequence[str], embedding_dim: int, layers: int, rank: int) -> None:
        super().__init__()
        self._features = list(features)
        self.out_features = (len(features) + 1) * embedding_dim
        self.cross = LowRankCrossNet(self.out_features, layers, rank)

    def forward(self, dense_BD: Tensor, sparse: KeyedTensor) -> Tensor:
        """Float [B, D] and F embeddings, [B, F D] in any order, to [B, V D]."""
        return self.cross(torch.cat([dense_BD, in_order(sparse, self._features)], dim=1))


class ProjectionInteraction(nn.Module):
    """Dot products of the vectors that two MLPs make of all embeddings: torchrec's DLRM_Projection.

    Each MLP ends with a ReLU and gives a multiple of D: P1 vectors, and P2. Behind the dense vector come the products
    of the first one's vectors with the columns of the second one's output, read as a [D, P2] matrix.
    """

    def __init__(
        self, features: Sequence[str], embedding_dim: int, branch1: Sequence[int], branch2: Sequence[int]
    ) -> None:
        super().__init__()
        self._features = list(features)
        vectors = len(features) + 1
        self.out_features = embedding_dim + branch1[-1] // embedding_dim * (branch2[-1] // embedding_dim)
        columns = vectors * embedding_dim
        self.arch = InteractionProjectionArch(len(features), MLP(columns, branch1), MLP(columns, branch2))

    def forward(self, dense_BD: Tensor, sparse: KeyedTensor) -> Tensor:
        """Float [B, D] and F embeddings, [B, F D] in any order, to [B, D + P1 P2]."""
        sparse_BFD = in_order(sparse, self._features).unflatten(1, (-1, dense_BD.shape[1]))
        return self.arch(dense_BD, sparse_BFD)

"""DLRM, the deep learning recommendation model of Naumov et al., arXiv 1906.00091.

Shape suffixes: B batch, N dense features, F embedding features, D embedding dim.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchrec.modules.crossnet import LowRankCrossNet
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_dist.models.interaction import CrossInteraction, DotInteraction


class PaddedLinear(nn.Linear):
    """A linear layer for inputs that may have columns of zeros behind their own."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Float [B, in_features or more] to [B, out_features]."""
        weight = nn.functional.pad(self.weight, (0, inputs.shape[1] - self.in_features))
        return nn.functional.linear(inputs, weight, self.bias)


class MLP(nn.Sequential):
    """Linear layers, each with a ReLU behind it but, when `logit` is set, the last."""

    def __init__(self, in_features: int, widths: Sequence[int], logit: bool = False) -> None:
        layers: list[nn.Module] = []
        for width in widths:
            layers += [(nn.Linear if layers else PaddedLinear)(in_features, width), nn.ReLU(inplace=True)]
            in_features = width
        super().__init__(*(layers[:-1] if logit else layers))


class DLRM(nn.Module):
    """Bottom MLP, embedding bags (sum pooling), an interaction of their outputs, top MLP; returns logits.

    Args:
        num_dense: number of dense features.
        tables: one table a feature, all of one width.
        bottom_mlp: widths of the bottom MLP's layers, the last that of the tables.
        top_mlp: widths of the top MLP's layers, the last 1.
        interaction: a module with `out_features` that takes the dense vector and the embeddings.
        tables_device: where the tables are made; `meta` takes no memory.
    """

    def __init__(
        self,
        num_dense: int,
        tables: Sequence[EmbeddingBagConfig],
        bottom_mlp: Sequence[int],
        top_mlp: Sequence[int],
        interaction: DotInteraction | CrossInteraction,
        tables_device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.bottom_mlp = MLP(num_dense, bottom_mlp)
        self.embeddings = EmbeddingBagCollection(tables=list(tables), device=tables_device)
        self.interaction = interaction
        self.top_mlp = MLP(interaction.out_features, top_mlp, logit=True)

    def forward(self, dense_BN: Tensor, sparse: KeyedJaggedTensor) -> Tensor:
        """Float [B, N] and a jagged tensor of F keys to logits, float [B]."""
        embeddings = self.embeddings(sparse)  # begins their exchange between ranks, which the bottom MLP then hides
        dense_BD = self.bottom_mlp(dense_BN)
        return self.top_mlp(self.interaction(dense_BD, embeddings)).squeeze(1)


def table_configs(
    features: Sequence[tuple[str, int]], embedding_dim: int, precision: str = "fp32"
) -> list[EmbeddingBagConfig]:
    """One table `t_<feature>` for each (feature, rows), initialised U(+-sqrt(1 / rows)) as the paper's code does."""
    return [
        EmbeddingBagConfig(
            name=f"t_{feature}",
            embedding_dim=embedding_dim,
            num_embeddings=rows,
            feature_names=[feature],
            pooling=PoolingType.SUM,
            data_type=DataType(precision.upper()),
            weight_init_min=-math.sqrt(1 / rows),
            weight_init_max=math.sqrt(1 / rows),
        )
        for feature, rows in features
    ]


def init_dense(model: nn.Module, generator: torch.Generator) -> None:
    """Initialise all but the tables.

    Linear as the paper's code does, W ~ N(0, sqrt(2 / (in + out))), b ~ N(0, sqrt(1 / out)); a cross network with
    Xavier-normal kernels and zero bias, as MLPerf's.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            fan_out, fan_in = module.weight.shape
            nn.init.normal_(module.weight, std=math.sqrt(2 / (fan_in + fan_out)), generator=generator)
            nn.init.normal_(module.bias, std=math.sqrt(1 / fan_out), generator=generator)
        elif isinstance(module, LowRankCrossNet):
            for kernel in (*module.W_kernels, *module.V_kernels):
                nn.init.xavier_normal_(kernel, generator=generator)

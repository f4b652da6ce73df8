"""The layers that all models are made of."""

from collections.abc import Sequence

from torch import Tensor, nn

from dlrm_dist.models.batch_norm import BatchNorm


class PaddedLinear(nn.Linear):
    """A linear layer for inputs that may have columns of zeros behind their own."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Float [B, in_features or more] to [B, out_features]."""
        weight = nn.functional.pad(self.weight, (0, inputs.shape[1] - self.in_features))
        return nn.functional.linear(inputs, weight, self.bias)


class MLP(nn.Sequential):
    """Linear layers, each with a ReLU behind it but, when `logit` is set, the last.

    With `batch_norm` a batch normalisation follows each ReLU.
    """

    def __init__(self, in_features: int, widths: Sequence[int], logit: bool = False, batch_norm: bool = False) -> None:
        layers: list[nn.Module] = []
        for width in widths:
            layers += [(nn.Linear if layers else PaddedLinear)(in_features, width), nn.ReLU(inplace=True)]
            layers += [BatchNorm(width)] if batch_norm else []
            in_features = width
        super().__init__(*(layers[:-1] if logit else layers))

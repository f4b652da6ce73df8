"""The layers that all models are made of."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from dlrm_dist.models.batch_norm import BatchNorm


class PaddedLinear(nn.Linear):
    """A linear layer for inputs that may have columns of zeros behind their own."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Float [B, in_features or more] to [B, out_features]."""
        weight = nn.functional.pad(self.weight, (0, inputs.shape[1] - self.in_features))
        return nn.functional.linear(inputs, weight, self.bias)


Layers = Callable[[int], list[nn.Module]]
"""What stands behind a linear layer of so many columns."""


def relu(columns: int) -> list[nn.Module]:
    """A ReLU."""
    return [nn.ReLU(inplace=True)]


def relu_and_norm(columns: int) -> list[nn.Module]:
    """A ReLU, and a batch normalisation behind it: PaddleRec's order."""
    return [nn.ReLU(inplace=True), BatchNorm(columns)]


def nothing(columns: int) -> list[nn.Module]:
    """Behind a logit."""
    return []


def regularised(batch_norm: bool, dropout: float) -> Layers:
    """A ReLU, with a batch normalisation before it and dropout behind, if they are wanted: the order of FuxiCTR."""

    def layers(columns: int) -> list[nn.Module]:
        norm = [BatchNorm(columns)] if batch_norm else []
        return [*norm, nn.ReLU(inplace=True), *([nn.Dropout(dropout)] if dropout else [])]

    return layers


class MLP(nn.Sequential):
    """Linear layers with `behind` after each, or after all but the last, which has `behind_last`."""

    def __init__(
        self, in_features: int, widths: Sequence[int], behind: Layers = relu, behind_last: Layers | None = None
    ) -> None:
        layers: list[nn.Module] = []
        for number, width in enumerate(widths, 1):
            layers.append((nn.Linear if layers else PaddedLinear)(in_features, width))
            layers += (behind if behind_last is None or number < len(widths) else behind_last)(width)
            in_features = width
        super().__init__(*layers)

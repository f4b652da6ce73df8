"""Initial weights, each model's as its source has them, from a generator.

- `dlrm`: facebookresearch/dlrm. Linear W ~ N(0, sqrt(2 / (in + out))), b ~ N(0, sqrt(1 / out)); tables
  U(+-sqrt(1 / rows)).
- `dlrm_dcnv2`, `dlrm_projection`: MLPerf's torchrec_dlrm. Linear W and b ~ U(+-sqrt(1 / in)), PyTorch's own; a cross
  network's kernels Xavier-normal, its biases 0; tables as above.
- `dcn`: the paper says nothing; its experiments ran on TensorFlow, whose default is Glorot-uniform with biases 0. A
  cross network's vectors as torchrec's; tables as above.
- `paddlerec`: W ~ N(0, sqrt(1 / in)) and tables ~ N(0, 1), both cut off at two standard deviations; biases 0.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Generator, Tensor, nn
from torchrec.modules.crossnet import LowRankCrossNet

from dlrm_dist.models.dcn import CrossNet

Rule = Callable[[nn.Linear, Generator], object]


def _paper(linear: nn.Linear, generator: Generator) -> None:
    fan_out, fan_in = linear.weight.shape
    nn.init.normal_(linear.weight, std=math.sqrt(2 / (fan_in + fan_out)), generator=generator)
    nn.init.normal_(linear.bias, std=math.sqrt(1 / fan_out), generator=generator)


def _torch(linear: nn.Linear, generator: Generator) -> None:
    bound = math.sqrt(1 / linear.in_features)
    for parameter in (linear.weight, linear.bias):
        nn.init.uniform_(parameter, -bound, bound, generator=generator)


def _tensorflow(linear: nn.Linear, generator: Generator) -> None:
    nn.init.xavier_uniform_(linear.weight, generator=generator)
    nn.init.zeros_(linear.bias)


def _paddlerec(linear: nn.Linear, generator: Generator) -> None:
    _cut_normal(linear.weight, math.sqrt(1 / linear.in_features), generator)
    nn.init.zeros_(linear.bias)


_RULES: dict[str, Rule] = {
    "dlrm": _paper,
    "dlrm_dcnv2": _torch,
    "dlrm_projection": _torch,
    "dcn": _tensorflow,
    "paddlerec": _paddlerec,
}


def init_dense(model: nn.Module, name: str, generator: Generator) -> None:
    """Initialise all but the tables of the model `name`."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            _RULES[name](module, generator)
        elif isinstance(module, LowRankCrossNet):
            for kernel in (*module.W_kernels, *module.V_kernels):
                nn.init.xavier_normal_(kernel, generator=generator)
        elif isinstance(module, CrossNet):
            for kernel in module.kernels:
                nn.init.xavier_normal_(kernel.unsqueeze(1), generator=generator)


def table_rule(name: str, rows: int) -> Callable[..., Tensor]:
    """Fills a table, or whole rows of it, of the model `name`; takes a tensor and `generator`."""
    if name == "paddlerec":
        return partial(_cut_normal, std=1.0)
    bound = math.sqrt(1 / rows)
    return partial(nn.init.uniform_, a=-bound, b=bound)


def _cut_normal(weight: Tensor, std: float, generator: torch.Generator | None = None) -> Tensor:
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std, generator=generator)

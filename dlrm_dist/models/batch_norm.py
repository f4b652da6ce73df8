"""Batch normalisation over the global batch, Ioffe and Szegedy, arXiv 1502.03167.

Torch's SyncBatchNorm refuses the CPU, and counts fillers as rows.

Shape suffixes: B rows, C columns.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_WEIGHTS: ContextVar[Tensor | None] = ContextVar("weights", default=None)


@contextmanager
def counting_rows(weights: Tensor) -> Iterator[None]:
    """Inside, rows whose weight is 0 (fillers) count in no statistics; `weights` is float [B]."""
    token = _WEIGHTS.set(weights)
    try:
        yield
    finally:
        _WEIGHTS.reset(token)


def _as_it_is(values: Tensor) -> Tensor:
    return values


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps), and the statistics: count, mean and sum of squared deviations.

    One sum over ranks forward, one backward. Moments are merged in float64: the sum of squares less the squared sum
    loses no digit that fp32 has.
    """

    @staticmethod
    def forward(
        x_BC: Tensor, counted_B1: Tensor, eps: float, sum_over_ranks: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        count, columns = counted_B1.sum(dtype=torch.float64), x_BC.shape[1]
        mean_C = (x_BC * counted_B1).sum(0) / count.clamp(min=1).to(x_BC.dtype)
        squares_C = ((x_BC - mean_C).square() * counted_B1).sum(0).double()
        mean_C = mean_C.double()
        packed = sum_over_ranks(torch.cat([count[None], count * mean_C, squares_C + count * mean_C.square()]))
        count = packed[0].clamp(min=1)
        mean_C = packed[1 : 1 + columns] / count
        squares_C = (packed[1 + columns :] - count * mean_C.square()).clamp(min=0)
        scale_C = (squares_C / count + eps).rsqrt().to(x_BC.dtype)
        return (x_BC - mean_C.to(x_BC.dtype)) * scale_C, count, mean_C, squares_C, scale_C

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, counted_B1, _, ctx.sum_over_ranks = inputs
        normal_BC, count, mean_C, squares_C, scale_C = output
        ctx.mark_non_differentiable(count, mean_C, squares_C, scale_C)
        ctx.save_for_backward(normal_BC, counted_B1, count, scale_C)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BC: Tensor, *_: Tensor) -> tuple[Tensor, None, None, None]:
        normal_BC, counted_B1, count, scale_C = ctx.saved_tensors
        sums_2C = torch.stack([grad_BC.sum(0), (grad_BC * normal_BC).sum(0)])
        sums_2C = ctx.sum_over_ranks(sums_2C) / count.to(grad_BC.dtype)
        through_statistics_BC = (sums_2C[0] + normal_BC * sums_2C[1]) * counted_B1
        return (grad_BC - through_statistics_BC) * scale_C, None, None, None


class BatchNorm(nn.BatchNorm1d):
    """Columns to mean 0 and variance 1 over the rows of all ranks, then a scale and a shift, which are learnt.

    Attributes:
        sum_over_ranks: adds a tensor up over ranks and returns the sum; as it is made, there is one rank. What shards
            the model sets it, so every rank has the same statistics, in its running buffers too.
    """

    def __init__(self, columns: int) -> None:
        super().__init__(columns)
        self.sum_over_ranks: Callable[[Tensor], Tensor] = _as_it_is

    def forward(self, input: Tensor) -> Tensor:
        """Float [B, C] to the same; bf16 inputs come out in fp32. Collective while training.

        Training takes the statistics of this step's rows and moves the running ones by a tenth; evaluation takes those.
        """
        x_BC = input if input.dtype == torch.float64 else input.float()
        if not self.training:
            return super().forward(x_BC)
        weights = _WEIGHTS.get()
        ones_B1 = x_BC.new_ones(len(x_BC), 1)
        counted_B1 = ones_B1 if weights is None else (weights != 0).to(x_BC.dtype).unsqueeze(1)
        normal_BC, count, mean_C, squares_C, _ = _Normalise.apply(x_BC, counted_B1, self.eps, self.sum_over_ranks)
        self._move_running(mean_C, squares_C / (count - 1).clamp(min=1))
        return torch.addcmul(self.bias, normal_BC, self.weight)

    @torch.no_grad()
    def _move_running(self, mean_C: Tensor, variance_C: Tensor) -> None:
        """By torch's rule: the variance is the unbiased one."""
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance_C.to(self.running_var.dtype), self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)

"""Gradients of a batch whose dense part is done in micro-batches, so that the activations of one are in memory.

The tables' update is fused into their backward, so that they can neither be looked up nor go backward more than once a
step. Here the embeddings of the whole batch are a leaf of each micro-batch's graph, and get one gradient at the end.

Shape suffixes: B batch, E all columns of the embeddings.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.profiler import record_function

from dlrm_dist.errors import UserError

LossOf = Callable[[slice, Tensor], tuple[Tensor, Tensor]]
"""From rows of the batch and their embeddings, float [b, E], to the sum of their losses and their logits, float [b]."""


def check_model(model: nn.Module, micro_batches: int) -> None:
    """Refuse a model whose loss is no sum over micro-batches.

    Raises:
        UserError: it has batch normalisation.
    """
    if micro_batches > 1 and any(isinstance(each, nn.modules.batchnorm._BatchNorm) for each in model.modules()):
        raise UserError(with_batch_norm(micro_batches))


def with_batch_norm(micro_batches: int) -> str:
    """Why so many are refused for a model with batch normalisation."""
    return (
        f"train.micro_batches is {micro_batches}, and the model has batch normalisation, whose statistics would be "
        "those of a micro-batch; use 1, and a smaller train.batch_size if memory is short"
    )


def summed(
    loss_of: LossOf, embeddings_BE: Tensor, parameters: Sequence[nn.Parameter], micro_batches: int
) -> tuple[Tensor, Tensor]:
    """The loss of a batch, to call backward on, and its logits, float [B], detached.

    Args:
        loss_of: the dense part, of some rows.
        embeddings_BE: of all rows.
        parameters: all that `loss_of` trains.
        micro_batches: how many there are, at most B.
    """
    bounds = [len(embeddings_BE) * part // micro_batches for part in range(micro_batches + 1)]
    parts = [slice(start, stop) for start, stop in pairwise(bounds)]
    loss, logits = _Summed.apply(loss_of, parts, embeddings_BE, *parameters)
    return loss, logits


class _Summed(torch.autograd.Function):
    """Goes backward through each micro-batch in the forward, and hands the sums on in the backward.

    So each parameter gets its gradient once a step, as DDP wants it.
    """

    @staticmethod
    def forward(ctx: Any, loss_of: LossOf, parts: list[slice], embeddings_BE: Tensor, *parameters: Tensor) -> Any:
        sums = [torch.zeros_like(each) for each in (embeddings_BE, *parameters)]
        losses, logits = [], []
        for rows in parts:
            leaf = embeddings_BE[rows].detach().requires_grad_()
            with torch.enable_grad():
                loss, logits_of_rows = loss_of(rows, leaf)
            with record_function("## micro-batch backward ##"):
                gradients = torch.autograd.grad(loss, (leaf, *parameters))
            for total, gradient in zip((sums[0][rows], *sums[1:]), gradients, strict=True):
                total += gradient
            losses.append(loss.detach())
            logits.append(logits_of_rows.detach())
        ctx.save_for_backward(*sums)
        all_logits = torch.cat(logits)
        ctx.mark_non_differentiable(all_logits)
        return torch.stack(losses).sum(), all_logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(each * grad for each in ctx.saved_tensors)

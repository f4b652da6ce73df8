"""A batch of one rank: dense features, a KeyedJaggedTensor of categories, labels, weights."""

from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable


@dataclass
class ClickBatch(Pipelineable):  # type: ignore[misc]
    """B rows of one rank, of which the last may be fillers.

    Attributes:
        dense: float32 [B, num_dense].
        sparse: one key a categorical column, one id a row; a filler's bags are empty.
        labels: float32 [B], 0 or 1.
        weights: float32 [B], 1 for a row, 0 for a filler.
        loss_scale: float32 scalar, world size / rows of the step over all ranks: DDP and TorchRec average gradients
            over ranks, so a sum over the rank's rows times this is the mean over the global batch.
    """

    dense: Tensor
    sparse: KeyedJaggedTensor
    labels: Tensor
    weights: Tensor
    loss_scale: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """The batch on `device`."""
        return type(self)(*(getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)))

    def record_stream(self, stream: torch.Stream) -> None:
        """Tell the allocator that `stream` uses the batch."""
        for field in fields(self):
            getattr(self, field.name).record_stream(stream)

    def pin_memory(self) -> Self:
        """The batch in page-locked memory, for copies that overlap with compute."""
        return type(self)(*(getattr(self, f.name).pin_memory() for f in fields(self)))

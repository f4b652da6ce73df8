"""Click prediction: a model's logits to the loss that is trained."""

import torch
from torch import Tensor, nn

from dlrm_dist.data.batch import ClickBatch
from dlrm_dist.models.batch_norm import counting_rows

Predictions = tuple[Tensor, Tensor, Tensor, Tensor]
"""The loss (a scalar), logits, labels, weights (float32 [B] each), all detached."""


class ClickTask(nn.Module):
    """Binary cross-entropy of a model's logits, averaged over the rows of the global batch.

    Args:
        model: gives logits.
        device_type: where it runs.
        bf16: multiply in bfloat16; what the layers give is rounded to it, weights and sums are not.
    """

    def __init__(self, model: nn.Module, device_type: str = "cpu", bf16: bool = False) -> None:
        super().__init__()
        self.model = model
        self._arithmetic = device_type, bf16

    def forward(self, batch: ClickBatch) -> tuple[Tensor, Predictions]:
        """The loss to call backward on (its mean over ranks is the global mean), and detached predictions.

        Fillers have weight 0: they add nothing to the loss, to any gradient, or to the statistics of a batch.
        """
        device_type, bf16 = self._arithmetic
        with torch.autocast(device_type, torch.bfloat16, enabled=bf16), counting_rows(batch.weights):
            logits = self.model(batch.dense, batch.sparse)
        logits = logits.float()
        losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.labels, reduction="none")
        loss = (losses * batch.weights).sum() * batch.loss_scale
        return loss, (loss.detach(), logits.detach(), batch.labels, batch.weights)

"""Click prediction: a model's logits to the loss that is trained."""

import torch
from torch import Tensor, nn

from dlrm_dist.data.batch import ClickBatch

Predictions = tuple[Tensor, Tensor, Tensor, Tensor]
"""The loss (a scalar), logits, labels, weights (float32 [B] each), all detached."""


class ClickTask(nn.Module):
    """Binary cross-entropy of a model's logits, averaged over the rows of the global batch."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: ClickBatch) -> tuple[Tensor, Predictions]:
        """The loss to call backward on (its mean over ranks is the global mean), and detached predictions.

        Fillers have weight 0: they add nothing to the loss or to any gradient.
        """
        logits = self.model(batch.dense, batch.sparse).float()
        losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.labels, reduction="none")
        loss = (losses * batch.weights).sum() * batch.loss_scale
        return loss, (loss.detach(), logits.detach(), batch.labels, batch.weights)

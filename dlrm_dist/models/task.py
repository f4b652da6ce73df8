"""Click prediction: a model's logits to the loss that is trained."""

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedTensor

from dlrm_dist.data.batch import ClickBatch
from dlrm_dist.models import micro_batches as micro
from dlrm_dist.models.batch_norm import counting_rows
from dlrm_dist.models.click_model import ClickModel

Predictions = tuple[Tensor, Tensor, Tensor, Tensor]
"""The loss (a scalar), logits, labels, weights (float32 [B] each), all detached."""


class ClickTask(nn.Module):
    """Binary cross-entropy of a model's logits, averaged over the rows of the global batch.

    Args:
        model: gives logits.
        device_type: where it runs.
        bf16: multiply in bfloat16; what the layers give is rounded to it, weights and sums are not.
        micro_batches: parts of a training batch that go through the dense layers one after another.

    Raises:
        UserError: the model does not allow micro-batches.
    """

    def __init__(self, model: ClickModel, device_type: str = "cpu", bf16: bool = False, micro_batches: int = 1) -> None:
        super().__init__()
        micro.check_model(model, micro_batches)
        self.model = model
        self._arithmetic = device_type, bf16
        self._micro_batches = micro_batches

    def forward(self, batch: ClickBatch) -> tuple[Tensor, Predictions]:
        """The loss to call backward on (its mean over ranks is the global mean), and detached predictions.

        Fillers have weight 0: they add nothing to the loss, to any gradient, or to the statistics of a batch.
        """
        # TorchRec's pipeline looks for the lookups with a stand-in for the batch: both ways have the same.
        if self._micro_batches > 1 and self.training and isinstance(batch, ClickBatch):
            loss, logits = self._in_micro_batches(batch)
        else:
            with self._autocast(), counting_rows(batch.weights):
                logits = self.model(batch.dense, batch.sparse)
            logits = logits.float()
            loss = _loss(logits, batch.labels, batch.weights, batch.loss_scale)
        return loss, (loss.detach(), logits.detach(), batch.labels, batch.weights)

    def _in_micro_batches(self, batch: ClickBatch) -> tuple[Tensor, Tensor]:
        embeddings = self.model.embeddings(batch.sparse)
        values, names, widths = embeddings.values(), embeddings.keys(), embeddings.length_per_key()

        def loss_of(rows: slice, values: Tensor) -> tuple[Tensor, Tensor]:
            with self._autocast():
                logits = self.model.logits(batch.dense[rows], KeyedTensor(names, widths, values))
            logits = logits.float()
            return _loss(logits, batch.labels[rows], batch.weights[rows], batch.loss_scale), logits

        dense = [p for name, p in self.model.named_parameters() if not name.startswith("embeddings.")]
        return micro.summed(loss_of, values, dense, self._micro_batches)

    def _autocast(self) -> torch.autocast:
        device_type, bf16 = self._arithmetic
        return torch.autocast(device_type, torch.bfloat16, enabled=bf16)


def _loss(logits: Tensor, labels: Tensor, weights: Tensor, scale: Tensor) -> Tensor:
    losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return (losses * weights).sum() * scale

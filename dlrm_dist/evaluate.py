"""One pass over a split: every row is scored once."""

import torch
from torch import nn

from dlrm_dist.data.loader import SplitReader
from dlrm_dist.metrics import ClickMetrics, MetricState


def evaluate(
    model: nn.Module,
    reader: SplitReader,
    batch_size: int,
    device: torch.device,
) -> ClickMetrics:
    """Score the reader's split in global batches of `batch_size`. Collective: every rank must call it."""
    training = model.training
    model.eval()
    state = MetricState(device)
    with torch.no_grad():
        for batch in reader.batches(reader.order(batch_size, seed=None)):
            _, (_, logits, labels, weights) = model(batch.to(device, non_blocking=True))
            state.update(logits, labels, weights)
    model.train(training)
    return state.compute()

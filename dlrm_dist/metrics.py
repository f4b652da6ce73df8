"""Metrics of click prediction: streaming, in bounded memory, merged over ranks by one sum.

Scores are counted in bins of equal width in logit space, where the scores of a rare click lie as densely as others do.
Two scores that share a bin count as tied: the area under the ROC curve is then off by at most half the pairs of one
click and one non-click that share a bin, and that bound is reported beside it.
"""

import math
from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist
from torch import Tensor

_BINS = 1 << 15
_LIMIT = 16.0
"""Logits beyond +-16 (a probability of 1e-7) share the outermost bins."""


@dataclass(frozen=True)
class ClickMetrics:
    """Figures over the rows that were scored.

    Attributes:
        rows: number of rows (sum of weights).
        auc: area under the ROC curve; NaN when only one class is there.
        auc_error: bound on what binning changed in it.
        log_loss: mean binary cross-entropy in nats.
        ne: normalised entropy, log_loss / entropy of the label rate (He et al., ADKDD 2014); NaN for one class.
        accuracy: share of rows where (probability > .5) is the label.
        calibration: mean prediction / mean label; NaN without a click.
        click_rate: mean label.
    """

    rows: float
    auc: float
    auc_error: float
    log_loss: float
    ne: float
    accuracy: float
    calibration: float
    click_rate: float

    def as_dict(self) -> dict[str, float]:
        """The figures by name."""
        return asdict(self)


class MetricState:
    """Running sums of one pass over scored rows."""

    def __init__(self, device: torch.device) -> None:
        self._counts = torch.zeros(2, _BINS, dtype=torch.float64, device=device)
        # weight, loss, hits, predicted clicks
        self._sums = torch.zeros(4, dtype=torch.float64, device=device)

    def update(self, logits: Tensor, labels: Tensor, weights: Tensor) -> None:
        """Add rows: logits, labels (0 or 1) and weights, float [B] each; weight 0 is a filler."""
        losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        hits = (logits > 0) == (labels > 0.5)
        values = torch.stack([torch.ones_like(losses), losses, hits.to(losses.dtype), logits.sigmoid()])
        self._sums += (values.double() * weights).sum(dim=1)
        # What is not finite lands in the middle; the loss is then not finite either, and says so.
        place = (logits.nan_to_num(0.0).clamp(-_LIMIT, _LIMIT) + _LIMIT) * ((_BINS - 1) / (2 * _LIMIT))
        index = place.round().long() + (labels > 0.5).long() * _BINS
        self._counts.view(-1).index_add_(0, index, weights.double())

    def compute(self) -> ClickMetrics:
        """The figures over all ranks' rows. Collective when a process group is up: every rank must call it."""
        packed = torch.cat([self._counts.view(-1), self._sums])
        if dist.is_initialized():
            dist.all_reduce(packed)
        values = packed.cpu()
        counts, sums = values[: 2 * _BINS].view(2, _BINS), values[2 * _BINS :]
        rows, loss, hits, predicted = sums.tolist()
        negatives, positives = counts[0].sum().item(), counts[1].sum().item()
        auc, error = _auc(counts)
        rate = _ratio(positives, rows)
        entropy = -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate)) if positives and negatives else math.nan
        return ClickMetrics(
            rows=rows,
            auc=auc,
            auc_error=error,
            log_loss=_ratio(loss, rows),
            ne=_ratio(loss, rows) / entropy,
            accuracy=_ratio(hits, rows),
            calibration=_ratio(predicted, positives),
            click_rate=rate,
        )


def _auc(counts: Tensor) -> tuple[float, float]:
    """Area under the ROC curve of two histograms, float64 [2, bins], and the bound on its error."""
    negatives, positives = counts
    pairs = (negatives.sum() * positives.sum()).item()
    below = negatives.cumsum(0) - negatives
    tied = (negatives * positives).sum().item()
    won = (below * positives).sum().item()
    return _ratio(won + tied / 2, pairs), _ratio(tied / 2, pairs)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan

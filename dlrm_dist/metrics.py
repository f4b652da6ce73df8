"""Metrics of click prediction: streaming, in bounded memory, merged over ranks by one sum.

Scores are counted in bins of equal width in logit space, where the scores of a rare click lie as densely as others do.
Two scores that share a bin count as tied, and a bound on what that changes is reported beside each area
(`dlrm_dist.ranking.binned`). Areas without bins, and grouped ones, order the rows on disk.
"""

import math
from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from dlrm_dist.ranking.binned import Areas, areas
from dlrm_dist.ranking.exact import ExactAreas
from dlrm_dist.ranking.grouped import Grouped, GroupedAuc

_BINS = 1 << 15
_LIMIT = 16.0
"""Logits beyond +-16 (a probability of 1e-7) share the outermost bins."""


@dataclass(frozen=True)
class ClickMetrics:
    """Figures over the rows that were scored.

    Attributes:
        rows: number of rows (sum of weights).
        auc: area under the ROC curve; NaN when only one class is there.
        auc_error: bound on what binning changed in it; 0 when exact.
        auprc: average precision, the area under the precision-recall curve; NaN when only one class is there.
        auprc_error: bound on what binning changed in it; 0 when exact.
        log_loss: mean binary cross-entropy in nats.
        ne: normalised entropy, log_loss / entropy of the label rate (He et al., ADKDD 2014); NaN for one class.
        accuracy: share of rows where (probability > .5) is the label.
        calibration: mean prediction / mean label; NaN without a click.
        click_rate: mean label.
        gauc: grouped AUC; None when rows are not grouped, NaN when no group has both classes.
        gauc_groups: number of groups with both classes.
        gauc_rows: their rows (sum of weights).
    """

    rows: float
    auc: float
    auc_error: float
    auprc: float
    auprc_error: float
    log_loss: float
    ne: float
    accuracy: float
    calibration: float
    click_rate: float
    gauc: float | None = None
    gauc_groups: int | None = None
    gauc_rows: float | None = None

    def as_dict(self) -> dict[str, float]:
        """The figures by name, without those that were not asked for."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class MetricState:
    """Running sums of one pass over scored rows.

    Args:
        device: where logits come from.
        exact: orders the scores for areas without bins, in place of those with.
        grouped: orders them within groups.
    """

    def __init__(
        self, device: torch.device, exact: ExactAreas | None = None, grouped: GroupedAuc | None = None
    ) -> None:
        self._exact, self._grouped = exact, grouped
        self._counts = torch.zeros(2, _BINS, dtype=torch.float64, device=device)
        # weight, loss, hits, predicted clicks
        self._sums = torch.zeros(4, dtype=torch.float64, device=device)

    def update(self, logits: Tensor, labels: Tensor, weights: Tensor, groups: Tensor | None = None) -> None:
        """Add rows.

        Args:
            logits: float32 [B].
            labels: 0 or 1, float32 [B].
            weights: float32 [B]; weight 0 is a filler.
            groups: int64 [B], on CPU, -1 for none; needed for a grouped AUC alone.
        """
        scores, targets = logits.double(), labels.double()  # a float32 loss is off by 6e-8 a row
        losses = torch.nn.functional.binary_cross_entropy_with_logits(scores, targets, reduction="none")
        hits = ((logits > 0) == (labels > 0.5)).double()
        self._sums += (torch.stack([torch.ones_like(losses), losses, hits, scores.sigmoid()]) * weights).sum(dim=1)
        # What is not finite lands in the middle; the loss is then not finite either, and says so.
        place = (logits.nan_to_num(0.0).clamp(-_LIMIT, _LIMIT) + _LIMIT) * ((_BINS - 1) / (2 * _LIMIT))
        index = place.round().long() + (labels > 0.5).long() * _BINS
        self._counts.view(-1).index_add_(0, index, weights.double())
        if self._exact or self._grouped:
            self._order(logits, labels, weights, groups)

    def _order(self, *columns: Tensor | None) -> None:
        """Hand rows to what orders them; waits for the device."""
        scores, labels, weights, groups = (None if each is None else each.cpu().numpy() for each in columns)
        assert scores is not None and labels is not None and weights is not None
        if self._exact:
            self._exact.add(scores, labels, weights)
        if self._grouped and groups is not None:
            self._grouped.add(groups, scores, labels, weights)

    def totals(self) -> Tensor:
        """The sums over all ranks' rows, float64 on CPU; those of several passes add up. Collective, as `compute`."""
        packed = torch.cat([self._counts.view(-1), self._sums])
        if dist.is_initialized():
            dist.all_reduce(packed)
        return packed.cpu()

    def compute(self) -> ClickMetrics:
        """The figures over all ranks' rows. Collective when a process group is up: every rank must call it."""
        totals = self.totals()
        return figures(
            totals,
            self._exact.compute() if self._exact else None,
            self._grouped.compute() if self._grouped else None,
        )


def figures(totals: Tensor, exact: Areas | None = None, grouped: Grouped | None = None) -> ClickMetrics:
    """What `MetricState.totals` amount to, with areas and grouped AUC from elsewhere where they are not of the bins."""
    counts, sums = totals[: 2 * _BINS].view(2, _BINS), totals[2 * _BINS :]
    rows, loss, hits, predicted = sums.tolist()
    negatives, positives = counts[0].sum().item(), counts[1].sum().item()
    rate = _ratio(positives, rows)
    entropy = -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate)) if positives and negatives else math.nan
    area = exact or areas(counts)
    return ClickMetrics(
        rows=rows,
        **area._asdict(),
        log_loss=_ratio(loss, rows),
        ne=_ratio(loss, rows) / entropy,
        accuracy=_ratio(hits, rows),
        calibration=_ratio(predicted, positives),
        click_rate=rate,
        gauc=grouped and grouped.auc,
        gauc_groups=grouped and grouped.groups,
        gauc_rows=grouped and grouped.rows,
    )


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan

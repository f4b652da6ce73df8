"""Areas under the ROC and the precision-recall curve of scores that were counted in bins, with bounds on their errors.

Two scores that share a bin count as tied. What their true order could change is known from the counts alone.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Areas(NamedTuple):
    """Areas under curves, NaN where one class alone is there, and bounds on their absolute errors (0 when exact).

    `auprc` is the average precision, sum over thresholds of (recall gained) x precision, as scikit-learn has it.
    """

    auc: float = math.nan
    auc_error: float = math.nan
    auprc: float = math.nan
    auprc_error: float = math.nan


def areas(counts: Tensor) -> Areas:
    """The areas of two histograms of scores in rising order, float64 [2, bins]: non-clicks, clicks (sums of weights).

    The bound on the area under the ROC curve is half the pairs of a click and a non-click that share a bin. A bin's
    share of the average precision is largest if its clicks come first and are tied, and smallest if its non-clicks come
    first and no two clicks are tied; as an integral over the clicks it holds for weights too.
    """
    negatives, positives = counts
    clicks, others = positives.sum().item(), negatives.sum().item()
    if not clicks or not others:
        return Areas()
    below = negatives.cumsum(0) - negatives
    tied = (negatives * positives).sum().item() / 2
    won = (below * positives).sum().item() + tied
    auprc, low, high = (each.sum().item() / clicks for each in _precisions(negatives.flip(0), positives.flip(0)))
    return Areas(won / (clicks * others), tied / (clicks * others), auprc, max(high - auprc, auprc - low))


def _precisions(negatives: Tensor, positives: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Clicks times precision of each bin, from the highest one down: as if tied, at least, at most; [bins] each."""
    hits = positives.cumsum(0)
    false = negatives.cumsum(0)
    before = false - negatives
    seen = hits - positives + false
    spread = torch.where(false > 0, false * torch.log1p(positives / seen.clamp_min(torch.finfo(seen.dtype).tiny)), 0.0)
    tied, most = (positives * hits / (hits + each).clamp_min(torch.finfo(hits.dtype).tiny) for each in (false, before))
    return tied, positives - spread, most

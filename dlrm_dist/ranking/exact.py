"""Areas under the ROC and the precision-recall curve without bins: of all ranks' scores in order."""

import numpy as np
import numpy.typing as npt

from dlrm_dist.ranking.binned import Areas
from dlrm_dist.ranking.sorted_runs import Records, SortedRuns, key_of
from dlrm_dist.runtime import Session

Float32 = npt.NDArray[np.float32]


class ExactAreas:
    """Takes every row's score, and orders them on disk.

    Args:
        runs: where rows go.
        here: this rank.
    """

    def __init__(self, runs: SortedRuns, here: Session) -> None:
        self._runs, self._here = runs, here

    def add(self, scores: Float32, labels: Float32, weights: Float32) -> None:
        """Take rows [n]; those of weight 0 count for nothing."""
        kept = weights != 0
        clicks, others = split_by_label(labels[kept], weights[kept])
        keys = key_of(scores[kept])
        self._runs.add(Records(keys, np.zeros_like(keys), clicks, others))

    def compute(self) -> Areas:
        """The areas over all ranks' rows, with errors of 0. Collective."""
        share = self._runs.share()
        own = np.array([[run.positive.sum(), run.negative.sum()] for run in share]).reshape(-1, 2).sum(axis=0)
        totals = self._here.gather(own)
        clicks, others = np.sum(totals, axis=0)
        clicks_below, others_below = np.sum([np.zeros(2), *totals[: self._here.global_rank]], axis=0)
        won = precision = 0.0
        for rows in self._runs.merged(share):
            below = others_below + np.cumsum(rows.negative) - rows.negative
            won += float(np.sum(rows.positive * (below + rows.negative / 2)))
            hits = clicks - (clicks_below + np.cumsum(rows.positive) - rows.positive)
            precision += float(np.sum(rows.positive * hits / (hits + others - below)))
            clicks_below, others_below = clicks_below + rows.positive.sum(), others_below + rows.negative.sum()
        won, precision = np.sum(self._here.gather(np.array([won, precision])), axis=0)
        if not clicks or not others:
            return Areas()
        return Areas(float(won / (clicks * others)), 0.0, float(precision / clicks), 0.0)


def split_by_label(labels: Float32, weights: Float32) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The weights [n] of clicks, and of what is none."""
    is_click = labels > 0.5
    return np.where(is_click, weights, 0.0).astype(np.float64), np.where(is_click, 0.0, weights).astype(np.float64)

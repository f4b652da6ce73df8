"""Grouped AUC: how well clicks are ranked among the rows of one user, query or the like.

The mean of the groups' AUC, weighted by their impressions (rows, or the sum of their weights), over groups that have
both clicks and non-clicks: GAUC of Zhu et al., "Optimized Cost per Click in Taobao Display Advertising" (KDD 2017), and
of the DIN paper (arXiv 1706.06978, section 6). It is exact: each rank takes a range of groups, ordered on disk.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dlrm_dist.ranking.exact import Float32, split_by_label
from dlrm_dist.ranking.sorted_runs import Records, SortedRuns, key_of
from dlrm_dist.runtime import Session


class Grouped(NamedTuple):
    """The grouped AUC (NaN without a group of both classes), the number of such groups, and their rows' weight."""

    auc: float
    groups: int
    rows: float


class GroupedAuc:
    """Takes every row's group and score.

    Args:
        runs: where rows go.
        here: this rank.
    """

    def __init__(self, runs: SortedRuns, here: Session) -> None:
        self._runs, self._here = runs, here

    def add(self, groups: npt.NDArray[np.int64], scores: Float32, labels: Float32, weights: Float32) -> None:
        """Take rows [n]; those of weight 0, or of a negative group (none), count for nothing."""
        kept = (weights != 0) & (groups >= 0)
        clicks, others = split_by_label(labels[kept], weights[kept])
        self._runs.add(Records(groups[kept], key_of(scores[kept]), clicks, others))

    def compute(self) -> Grouped:
        """Over all ranks' rows. Collective."""
        own = _sums(self._runs.merged(self._runs.share()))
        weighted, groups, rows = np.sum(self._here.gather(own), axis=0).tolist()
        return Grouped(weighted / rows if rows else math.nan, int(groups), rows)


def _sums(stream: Iterable[Records]) -> npt.NDArray[np.float64]:
    """AUC x impressions, number, and impressions of the groups with both classes, in a stream ordered by group."""
    total, open_group, open_sums = np.zeros(3), -1, np.zeros((1, 3))
    for rows in stream:
        starts = np.flatnonzero(np.diff(rows.outer, prepend=-1))
        goes_on = rows.outer[0] == open_group
        if not goes_on:
            total += _of_groups(open_sums)
            open_sums = np.zeros((1, 3))
        below = np.cumsum(rows.negative) - rows.negative
        first = below[starts]
        first[0] -= open_sums[0, 1]  # non-clicks of the group that were in the rows before
        below -= np.repeat(first, np.diff(starts, append=len(below)))
        won = rows.positive * (below + rows.negative / 2)
        sums = np.stack([np.add.reduceat(each, starts) for each in (rows.positive, rows.negative, won)], axis=1)
        sums[0] += open_sums[0]
        total += _of_groups(sums[:-1])
        open_group, open_sums = int(rows.outer[-1]), sums[-1:]
    return total + _of_groups(open_sums)


def _of_groups(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """What `_sums` adds up, of groups [n, 3]: their clicks, non-clicks, and pairs that are ranked rightly."""
    clicks, others, won = sums[(sums[:, 0] > 0) & (sums[:, 1] > 0)].T
    impressions = clicks + others
    return np.array([np.sum(won / (clicks * others) * impressions), len(clicks), impressions.sum()])

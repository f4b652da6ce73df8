"""One pass over a split: every row is scored once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from dlrm_dist.data.batch import ClickBatch
from dlrm_dist.data.loader import SplitReader
from dlrm_dist.metrics import ClickMetrics, MetricState
from dlrm_dist.ranking.exact import ExactAreas
from dlrm_dist.ranking.grouped import GroupedAuc
from dlrm_dist.ranking.scratch import scratch
from dlrm_dist.ranking.sorted_runs import SortedRuns
from dlrm_dist.runtime import Session
from dlrm_dist.sections import MetricsSection


def evaluate(
    model: nn.Module,
    reader: SplitReader,
    batch_size: int,
    here: Session,
    section: MetricsSection,
    folder: Path,
    told: Callable[[int], object] = lambda rows: None,
) -> ClickMetrics:
    """Score the reader's split in global batches of `batch_size`. Collective: every rank must call it.

    Args:
        model: a sharded task.
        reader: the rank's rows.
        batch_size: global rows of a step.
        here: this rank.
        section: which metrics.
        folder: the run's, for rows that must be ordered.
        told: called with the number of global rows of each step.
    """
    training = model.training
    model.eval()
    order = reader.order(batch_size, seed=None)
    with torch.no_grad(), _state(here, section, folder) as state:
        for step, batch in enumerate(reader.batches(order)):
            groups = first_ids(batch, section.group_by) if section.group_by else None
            _, (_, logits, labels, weights) = model(batch.to(here.device, non_blocking=True))
            state.update(logits, labels, weights, groups)
            start, stop = order.step_bounds(step)
            told(stop - start)
        scores = state.compute()
    model.train(training)
    return scores


@contextmanager
def _state(here: Session, section: MetricsSection, folder: Path) -> Iterator[MetricState]:
    """The sums of a pass, with a place on disk if they need one."""
    if not section.exact and section.group_by is None:
        yield MetricState(here.device)
        return
    with scratch(folder, here) as place:
        exact = ExactAreas(SortedRuns(place, "all", here), here) if section.exact else None
        grouped = GroupedAuc(SortedRuns(place, "grouped", here), here) if section.group_by else None
        yield MetricState(here.device, exact, grouped)


def first_ids(batch: ClickBatch, column: str) -> Tensor:
    """The first id of each row in a category, int64 [B]; -1 where the row has none."""
    bags = batch.sparse[column]
    lengths, offsets, ids = bags.lengths(), bags.offsets(), bags.values()
    if len(ids) == 0:
        return torch.full(lengths.shape, -1, dtype=torch.int64)
    first = ids[offsets[:-1].long().clamp_max(len(ids) - 1)].long()
    return torch.where(lengths > 0, first, -1)

"""Exact and grouped areas, ordered on disk, against scikit-learn; on one rank (tests/ranks has several)."""

import math
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_dist.evaluate import first_ids
from dlrm_dist.metrics import MetricState
from dlrm_dist.ranking.exact import ExactAreas
from dlrm_dist.ranking.grouped import GroupedAuc
from dlrm_dist.ranking.sorted_runs import Records, SortedRuns, key_of
from tests.unit.test_metrics import EXACT, expit, planted

ALONE = SimpleNamespace(global_rank=0, world_size=1, gather=lambda value: [value])
RUN_ROWS = 700


def exact(folder, logits, labels, weights=None, run_rows=RUN_ROWS):
    """Fed in uneven pieces."""
    weights = np.ones_like(logits) if weights is None else weights
    areas = ExactAreas(SortedRuns(folder, "all", ALONE, run_rows), ALONE)
    for part in np.array_split(np.arange(len(logits)), 37):
        areas.add(logits[part], labels[part], weights[part])
    return areas.compute()


def grouped(folder, groups, logits, labels, weights=None, run_rows=RUN_ROWS):
    weights = np.ones_like(logits) if weights is None else weights
    areas = GroupedAuc(SortedRuns(folder, "grouped", ALONE, run_rows), ALONE)
    for part in np.array_split(np.arange(len(logits)), 37):
        areas.add(groups[part], logits[part], labels[part], weights[part])
    return areas.compute()


def grouped_by_definition(groups, logits, labels, weights):
    """The mean, the number of groups, their weight."""
    found = []
    for group in np.unique(groups[groups >= 0]):
        rows = (groups == group) & (weights > 0)
        if len(np.unique(labels[rows])) == 2:
            area = roc_auc_score(labels[rows], logits[rows], sample_weight=weights[rows])
            found.append((area, weights[rows].astype(np.float64).sum()))
    areas, sizes = np.array(found).T
    return np.average(areas, weights=sizes), len(found), sizes.sum()


def rows(rate, count=20_000, digits=None):
    logits, labels = (each.numpy() for each in planted(rate, rows=count))
    return (logits if digits is None else logits.round(digits)), labels


@pytest.mark.parametrize("rate", [0.27, 0.033, 0.003])
@pytest.mark.parametrize("digits", [None, 1])
def test_exact_areas_are_those_of_scikit_learn(tmp_path, rate, digits):
    logits, labels = rows(rate, digits=digits)
    found = exact(tmp_path, logits, labels)
    assert len(list(tmp_path.iterdir())) > 10  # or nothing was merged
    assert found.auc == pytest.approx(roc_auc_score(labels, logits), abs=EXACT)
    assert found.auprc == pytest.approx(average_precision_score(labels, logits), abs=EXACT)
    assert (found.auc_error, found.auprc_error) == (0, 0)


def test_weights_and_fillers(tmp_path):
    logits, labels = rows(0.1, digits=2)
    weights = np.random.default_rng(1).choice(np.float32([0, 0.3, 1, 7]), len(logits))
    found, w = exact(tmp_path, logits, labels, weights), weights.astype(np.float64)
    assert found.auc == pytest.approx(roc_auc_score(labels, logits, sample_weight=w), abs=EXACT)
    assert found.auprc == pytest.approx(average_precision_score(labels, logits, sample_weight=w), abs=EXACT)


def test_all_ties_and_saturated_scores(tmp_path):
    _, labels = rows(0.2, 3000)
    tied = exact(tmp_path, np.zeros(3000, np.float32), labels)
    assert (tied.auc, tied.auprc) == pytest.approx((0.5, labels.mean()))
    wild = np.random.default_rng(0).choice(np.float32([-3e38, -40, -0.0, 0.0, 40, 41, 3e38]), 3000)
    found = exact(tmp_path, wild, labels)
    assert found.auc == pytest.approx(roc_auc_score(labels, wild.astype(np.float64)), abs=EXACT)
    assert found.auprc == pytest.approx(average_precision_score(labels, wild.astype(np.float64)), abs=EXACT)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_class_and_no_rows(tmp_path, label):
    logits, _ = rows(0.2, 1000)
    for count in (1000, 0):
        assert all(map(math.isnan, exact(tmp_path, logits[:count], np.full(count, label, np.float32))))
        none = grouped(tmp_path, np.zeros(count, np.int64), logits[:count], np.full(count, label, np.float32))
        assert math.isnan(none.auc) and (none.groups, none.rows) == (0, 0)


@pytest.mark.parametrize("most", [1, 2, 300, 5_000])
def test_grouped_auc_is_its_definition(tmp_path, most):
    """One group larger than memory, two, some, and nearly one a row; some rows have no group."""
    logits, labels = rows(0.3, digits=1)
    rng = np.random.default_rng(2)
    groups = rng.integers(0, most, len(logits)) ** 2 // most  # uneven sizes
    groups[rng.random(len(logits)) < 0.1] = -1
    weights = rng.choice(np.float32([0, 0.5, 1, 2]), len(logits))
    found = grouped(tmp_path, groups, logits, labels, weights)
    assert found == pytest.approx(grouped_by_definition(groups, logits, labels, weights), rel=EXACT)


def test_ids_of_64_bits_are_groups_of_their_own(tmp_path):
    logits, labels = rows(0.3, 2000)
    groups = np.arange(2000) % 3 * (1 << 40)
    assert grouped(tmp_path, groups, logits, labels).groups == 3


def test_keys_are_in_the_order_of_scores():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 1 << 32, 100_000, dtype=np.uint32).view(np.float32)
    scores = np.concatenate([scores[np.isfinite(scores)], np.float32([0.0, -0.0, np.inf, -np.inf])])
    order = np.argsort(key_of(scores), kind="stable")
    assert np.all(np.diff(scores[order].astype(np.float64)[1:-1]) >= 0)
    assert np.array_equal(key_of(np.float32([-0.0])), key_of(np.float32([0.0])))
    assert len(np.unique(key_of(scores))) == len(np.unique(scores))


def test_merging_holds_some_rows_at_a_time(tmp_path):
    runs, rng = SortedRuns(tmp_path, "some", ALONE, 1000), np.random.default_rng(0)
    keys = rng.permutation(50_000)
    for part in np.array_split(keys, 50):
        runs.add(Records(part, part, np.ones(len(part)), np.zeros(len(part))))
    pieces = list(runs.merged(runs.share()))
    assert max(len(each.outer) for each in pieces) <= 1000
    assert np.array_equal(np.concatenate([each.outer for each in pieces]), np.arange(50_000))


@pytest.mark.parametrize("grouped", [False, True], ids=["exact", "grouped"])
def test_memory_does_not_grow_with_rows(tmp_path, grouped):
    """4 million rows are 128 MB on disk, and in memory are what two buffers and their ordering take.

    Counted is what is allocated: pages of mapped files are the system's, which takes them back when it needs to.
    """
    runs, rng = SortedRuns(tmp_path, "many", ALONE, 1 << 17), np.random.default_rng(0)
    areas = GroupedAuc(runs, ALONE) if grouped else ExactAreas(runs, ALONE)
    tracemalloc.start()
    try:
        for _ in range(64):
            scores = rng.standard_normal(1 << 16, np.float32)
            groups = [rng.integers(0, 100_000, 1 << 16)] if grouped else []
            areas.add(*groups, scores, (rng.random(1 << 16) < 0.1).astype(np.float32), np.ones(1 << 16, np.float32))
        assert abs(areas.compute().auc - 0.5) < 0.01
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) > 100e6
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def test_the_first_id_of_a_row_is_its_group():
    sparse = KeyedJaggedTensor(
        keys=["C1", "C2"], values=torch.tensor([5, 7, 8, 9, 1, 2]), lengths=torch.tensor([2, 0, 1, 1, 0, 1, 1, 0])
    )
    batch = SimpleNamespace(sparse=sparse)
    assert first_ids(batch, "C1").tolist() == [5, -1, 8, 9]
    assert first_ids(batch, "C2").tolist() == [-1, 1, 2, -1]
    empty = KeyedJaggedTensor(keys=["C1"], values=torch.empty(0, dtype=torch.int32), lengths=torch.zeros(3).int())
    assert first_ids(SimpleNamespace(sparse=empty), "C1").tolist() == [-1] * 3


def test_a_state_with_both(tmp_path):
    logits, labels = planted(0.1, rows=5000)
    groups = torch.arange(5000) % 50
    runs = (SortedRuns(tmp_path, name, ALONE, RUN_ROWS) for name in ("all", "grouped"))
    state = MetricState(torch.device("cpu"), ExactAreas(next(runs), ALONE), GroupedAuc(next(runs), ALONE))
    for part in torch.arange(5000).tensor_split(9):
        state.update(logits[part], labels[part], torch.ones(len(part)), groups[part])
    found, y, z = state.compute(), labels.numpy(), logits.numpy()
    assert found.auc == pytest.approx(roc_auc_score(y, z), abs=EXACT)
    assert found.auprc == pytest.approx(average_precision_score(y, z), abs=EXACT)
    assert found.log_loss == pytest.approx(log_loss(y, expit(z)), abs=EXACT)
    expected = grouped_by_definition(groups.numpy(), z, y, np.ones(5000))
    assert (found.gauc, found.gauc_groups, found.gauc_rows) == pytest.approx(expected, rel=EXACT)

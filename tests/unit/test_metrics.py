"""The streaming metrics against scikit-learn and against formulas in float64."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, average_precision_score, log_loss, roc_auc_score

from dlrm_dist.metrics import MetricState

ROWS = 200_000
EXACT = 1e-9
"""Relative: rows are computed and summed in float64."""


def expit(logits):
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def planted(rate, rows=ROWS, seed=0):
    """Logits around the rate's, and labels drawn from them; float32 [rows] each."""
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=rows) + math.log(rate / (1 - rate)) - 0.4).astype(np.float32)
    return torch.from_numpy(logits), torch.from_numpy((rng.random(rows) < expit(logits)).astype(np.float32))


def score(logits, labels, weights=None, cuts=1):
    state = MetricState(torch.device("cpu"))
    weights = torch.ones_like(logits) if weights is None else weights
    for part in torch.arange(len(logits)).tensor_split(cuts):
        state.update(logits[part], labels[part], weights[part])
    return state.compute()


@pytest.mark.parametrize("rate", [0.27, 0.033, 0.003])
def test_metrics_are_those_of_scikit_learn(rate):
    logits, labels = planted(rate)
    scores, y, z = score(logits, labels), labels.numpy(), logits.double().numpy()
    assert rate / 1.3 < scores.click_rate < rate * 1.3
    # Half the share of pairs in one bin of 1/1024: these scores' differences are spread over about +-2.8 with a
    # density of at most 0.29, so that 0.29 / 1024 / 2 = 1.4e-4 is what is to be expected.
    assert 0 < scores.auc_error < 2e-4
    assert abs(scores.auc - roc_auc_score(y, z)) <= scores.auc_error
    assert abs(scores.auc - roc_auc_score(y, z)) < 1e-5  # ties err in both directions and cancel out
    assert scores.log_loss == pytest.approx(log_loss(y, expit(z)), rel=EXACT)
    assert scores.accuracy == pytest.approx(accuracy_score(y, z > 0), rel=1e-12)
    assert scores.calibration == pytest.approx(expit(z).mean() / y.mean(dtype=np.float64), rel=EXACT)
    assert (scores.rows, scores.click_rate) == (ROWS, pytest.approx(y.mean(dtype=np.float64), rel=1e-12))


def test_normalised_entropy_is_the_loss_over_that_of_the_mean():
    logits, labels = planted(0.1)
    rate = labels.double().mean().item()
    constant = torch.full_like(logits, math.log(rate / (1 - rate)))
    of_the_mean = log_loss(labels.numpy(), np.full(ROWS, rate))
    assert score(logits, labels).ne == pytest.approx(score(logits, labels).log_loss / of_the_mean, rel=EXACT)
    assert score(constant, labels).ne == pytest.approx(1, rel=EXACT)
    assert score(logits, labels).ne < 1


def test_the_bound_holds_where_binning_does_its_worst():
    """Two scores in one bin, ordered wrongly and rightly: the exact areas are 0 and 1, and the bound says so."""
    logits = torch.tensor([0.0, 1e-4])
    for labels, exact in (([1.0, 0.0], 0), ([0.0, 1.0], 1)):
        scores = score(logits, torch.tensor(labels))
        assert (scores.auc, scores.auc_error) == (0.5, 0.5)
        assert abs(scores.auc - exact) <= scores.auc_error


def test_equal_scores_are_ties():
    _, labels = planted(0.2, rows=1000)
    scores = score(torch.full((1000,), -0.7), labels)
    assert scores.auc == 0.5 == roc_auc_score(labels.numpy(), np.full(1000, -0.7))
    assert scores.accuracy == pytest.approx(1 - scores.click_rate, abs=1e-12)


@pytest.mark.parametrize("sign", [1, -1])
def test_saturated_scores(sign):
    labels = (torch.arange(300) % 3 == 0).float()
    scores = score(sign * (100 * labels - 50), labels)
    assert (scores.auc, scores.auc_error, scores.accuracy) == ((1, 0, 1) if sign > 0 else (0, 0, 0))
    # A logit of 50 on the wrong side costs log(1 + e^50) = 50, not what a clipped probability would give.
    assert scores.log_loss == pytest.approx(np.logaddexp(0, -sign * 50.0), rel=EXACT)
    assert math.isfinite(scores.ne) and math.isfinite(scores.calibration)


def test_scores_beyond_the_range_are_ties_and_the_bound_counts_them():
    logits, labels = torch.tensor([-50.0, -20.0, 20.0, 50.0]), torch.tensor([0.0, 1.0, 0.0, 1.0])
    scores = score(logits, labels)
    exact = roc_auc_score(labels.numpy(), logits.numpy())
    assert (exact, scores.auc, scores.auc_error) == (0.75, 0.5, 0.25)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_class_has_a_loss_but_no_ranking(label):
    logits, _ = planted(0.3, rows=100)
    scores = score(logits, torch.full((100,), label))
    assert math.isnan(scores.auc) and math.isnan(scores.auc_error) and math.isnan(scores.ne)
    assert math.isnan(scores.calibration) == (label == 0)
    expected = log_loss(np.full(100, label), expit(logits.double().numpy()), labels=[0, 1])
    assert scores.log_loss == pytest.approx(expected, rel=EXACT)
    assert scores.click_rate == label


@pytest.mark.parametrize("fillers", [0, 5])
def test_no_rows(fillers):
    scores = score(torch.zeros(fillers), torch.zeros(fillers), torch.zeros(fillers)).as_dict()
    assert scores.pop("rows") == 0
    assert len(scores) == 9 and all(map(math.isnan, scores.values()))


def test_rows_of_weight_0_are_ignored():
    logits, labels = planted(0.3, rows=1000)
    kept = torch.arange(1000) % 4 != 0
    wild = torch.where(kept, logits, 50.0)
    found = score(wild, torch.where(kept, labels, 0.0), kept.float()).as_dict()
    assert found == pytest.approx(score(logits[kept], labels[kept]).as_dict(), rel=1e-12)  # sums in another order


def test_batches_change_nothing():
    logits, labels = planted(0.03)
    whole, pieces = score(logits, labels).as_dict(), score(logits, labels, cuts=37).as_dict()
    whole_numbers = ("rows", "auc", "auc_error", "auprc", "auprc_error", "accuracy", "click_rate")
    for name in whole_numbers:
        assert whole[name] == pieces[name]
    # A row's exponential may differ in its last bit with its place in a batch (SIMD lanes and the rest).
    for name in ("log_loss", "ne", "calibration"):
        assert whole[name] == pytest.approx(pieces[name], rel=1e-9)


def test_a_million_rows_are_not_lost_to_rounding():
    """In float32 a sum of ones stops at 2^24; here the state holds 2^24 rows and gets 100 single ones more."""
    state = MetricState(torch.device("cpu"))
    one = torch.ones(1)
    state.update(one, one, torch.tensor([float(2**24)]))
    for _ in range(100):
        state.update(-one, 0 * one, one)
    scores = state.compute()
    assert (scores.rows, scores.auc) == (2**24 + 100, 1)
    assert scores.click_rate == 2**24 / (2**24 + 100)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_are_not_finite_make_the_loss_so(bad):
    state = MetricState(torch.device("cpu"))
    state.update(torch.tensor([0.3, bad, bad]), torch.tensor([1.0, 0.0, 1.0]), torch.ones(3))
    assert not math.isfinite(state.compute().log_loss)


@pytest.mark.parametrize(("rate", "largest"), [(0.27, 5e-4), (0.033, 5e-4), (0.003, 3e-3)])
def test_average_precision_is_within_a_bound_that_says_something(rate, largest):
    """The fewer clicks, the coarser a bin is in recall: 600 of them at .003."""
    logits, labels = planted(rate)
    scores, exact = score(logits, labels), average_precision_score(labels.numpy(), logits.numpy())
    assert abs(scores.auprc - exact) <= scores.auprc_error < largest
    assert abs(scores.auprc - exact) < largest / 5  # ties err in both directions


@pytest.mark.parametrize("labels", [[0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 1], [1, 0, 0]])
@pytest.mark.parametrize("weights", [[1, 1, 1], [0.5, 2, 0.25]])
@pytest.mark.parametrize("first", [[], [(5.0, 0.0), (5.0, 1.0)], [(5.0, 0.0)], [(5.0, 1.0)]])
def test_average_precision_of_rows_in_one_bin_is_within_its_bound(labels, weights, first):
    """In each order, and as ties, behind rows that score higher."""
    for logits in ([0.0, 0.0, 0.0], [1e-5, 2e-5, 3e-5], [1e-5, 1e-5, 3e-5]):
        z = torch.tensor([each[0] for each in first] + logits)
        y = torch.tensor([each[1] for each in first] + labels, dtype=torch.float32)
        w = torch.tensor([1.0] * len(first) + weights)
        scores = score(z, y, w)
        assert abs(scores.auprc - average_precision_score(y, z, sample_weight=w)) <= scores.auprc_error + 1e-12
        assert abs(scores.auc - roc_auc_score(y, z, sample_weight=w)) <= scores.auc_error + 1e-12


def test_ties_are_ties_to_the_average_precision_too():
    _, labels = planted(0.2, rows=1000)
    assert score(torch.full((1000,), -0.7), labels).auprc == pytest.approx(labels.mean().item(), rel=1e-6)


def test_weighted_rows_are_those_of_scikit_learn():
    logits, labels = planted(0.1)
    weights = torch.rand(ROWS, generator=torch.Generator().manual_seed(0)) + 0.5
    scores, y, z, w = score(logits, labels, weights), labels.numpy(), logits.double().numpy(), weights.double().numpy()
    assert abs(scores.auc - roc_auc_score(y, z, sample_weight=w)) <= scores.auc_error
    assert abs(scores.auprc - average_precision_score(y, z, sample_weight=w)) <= scores.auprc_error
    assert scores.log_loss == pytest.approx(log_loss(y, expit(z), sample_weight=w), rel=EXACT)
    assert scores.accuracy == pytest.approx(accuracy_score(y, z > 0, sample_weight=w), rel=EXACT)
    assert scores.rows == pytest.approx(w.sum(), rel=EXACT)

"""Each curve against its formula; plateaus and early stopping on crafted scores."""

import math

import pytest

from dlrm_dist.learning_rate import factor_at
from dlrm_dist.monitor import Standing
from dlrm_dist.sections import ScheduleSection

TOTAL = 100
BARS_AUC = [
    *(0.804187, 0.806524, 0.807615, 0.807956, 0.808651, 0.808663, 0.809122, 0.809201, 0.809330, 0.809664, 0.809675),
    *(0.809607, 0.812970, 0.813400, 0.813497, 0.813298, 0.812458),
]
"""Validation by epoch of BARS's DLRM on Criteo_x1, as its published log has it: rates drop behind epochs 12, 16 and 17,
the run ends behind 17, and the weights of epoch 15 are its result."""


def curve(**section):
    return [factor_at(ScheduleSection(**section), step, TOTAL) for step in range(TOTAL)]


def test_without_a_schedule_nothing_changes():
    assert curve() == [1.0] * TOTAL == curve(decay="plateau")


def test_warm_up_rises_to_one():
    assert curve(warmup_steps=4)[:6] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(("power", "end"), [(2.0, 0.0), (1.0, 0.1), (0.5, 0.2)])
def test_polynomial(power, end):
    """MLPerf's with power 2 and end 0: ((D - t) / D)^2 from `start` on, then held."""
    found = curve(warmup_steps=5, decay="polynomial", start=20, steps=40, power=power, end_factor=end)
    assert found[4:21] == [1.0] * 17
    assert found[20:60] == pytest.approx([((40 - t) / 40) ** power * (1 - end) + end for t in range(40)])
    assert found[60:] == pytest.approx([end] * 40)


def test_cosine_begins_behind_the_warm_up_and_goes_to_the_end_of_the_run():
    found = curve(warmup_steps=20, decay="cosine", end_factor=0.1)
    assert found[20:] == pytest.approx([0.1 + 0.9 * (1 + math.cos(math.pi * t / 80)) / 2 for t in range(80)])


def test_steps():
    found = curve(decay="step", start=10, steps=30, factor=0.5, end_factor=0.2)
    assert found == [1.0] * 40 + [0.5] * 30 + [0.25] * 30
    assert curve(decay="step", steps=30, factor=0.5, end_factor=0.3)[60:] == [0.3] * 40


def course(scores, **keys):
    """The standing after each score, up to the end of the run."""
    section, standing, found = ScheduleSection(**keys), Standing(), []
    for step, auc in enumerate(scores, 1):
        standing = Standing.model_validate_json(standing.model_dump_json()).after(section, step, auc)
        found.append((standing, standing.factor(section)))
        if standing.is_over(section):
            break
    return found


def test_plateau_and_early_stopping_as_in_the_log_of_bars():
    found = course([*BARS_AUC, 0.9], decay="plateau", end_factor=1e-3, stop_patience=2)
    assert [factor for _, factor in found] == pytest.approx([1] * 11 + [0.1] * 4 + [0.01, 0.001])
    last, _ = found[-1]
    assert (len(found), last.best_step, last.best) == (17, 15, 0.813497)


def test_patience_and_the_least_factor():
    found = course([0.7] * 9, decay="plateau", patience=2, factor=0.5, end_factor=0.2)
    assert [factor for _, factor in found] == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2, 0.2]


def test_an_improvement_below_min_delta_is_none_and_adds_up():
    found = course([0.7, 0.7004, 0.7008, 0.7012], min_delta=1e-3, stop_patience=9)
    assert [standing.stale for standing, _ in found] == [0, 1, 2, 0]


def test_an_auc_that_is_not_a_number_is_never_better():
    found = course([math.nan, 0.6, math.nan], stop_patience=9)
    assert [(standing.best_step, standing.stale) for standing, _ in found] == [(0, 1), (2, 0), (2, 1)]


def test_no_plateau_drops_without_the_decay():
    assert course([0.7, 0.6, 0.5], stop_patience=5)[-1][1] == 1.0

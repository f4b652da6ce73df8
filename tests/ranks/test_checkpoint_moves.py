"""Checkpoints fit any number of ranks and any plan: a pairwise cover of the 400 pairs that a benchmark goes through."""

from itertools import combinations, product

import pytest

from benchmarks.checkpoint_matrix import PLANS, problem, run

WORLD_SIZES = (1, 2, 4)
"""The benchmark's without 8: eight ranks on two cores took most of the time."""


def pairs_of(case):
    return set(combinations(enumerate(case), 2))


def pairwise_cover():
    """Cases such that every two values of every two factors meet; greedy."""
    every = list(product(WORLD_SIZES, PLANS, WORLD_SIZES, PLANS))
    missing = set().union(*map(pairs_of, every))
    chosen = []
    while missing:
        best = max(every, key=lambda case: len(pairs_of(case) & missing))
        missing -= pairs_of(best)
        chosen.append(best)
    return [((a, kind), (b, under)) for a, kind, b, under in chosen]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("optimizer", ["adagrad", "rowwise_adagrad"])
def test_any_checkpoint_loads_under_any_plan(optimizer, tmp_path):
    cover = pairwise_cover()
    assert 25 <= len(cover) <= 40
    found = run(cover, optimizer, tmp_path)
    assert len(found) == len(cover)
    assert [each for each in found if each["problem"]] == []
    refused = [each for each in found if "refused" in each]
    assert bool(refused) == (optimizer == "rowwise_adagrad")
    assert all("row-wise Adagrad keeps a moment for each part of a row" in each["refused"] for each in refused)


def test_what_is_wrong_is_noticed():
    good = {"from": "1-row_wise", "under": "row_wise", "tensors": 3, "missing": [], "state": 0.0, "losses": 1e-7}
    assert problem({**good, "learned": 0.1}, "adagrad") is None
    for change in ({"state": 1e-9}, {"losses": 2e-6}, {"losses": float("nan")}, {"missing": ["a"]}, {"learned": 0.0}):
        assert problem({**good, "learned": 0.1, **change}, "adagrad") is not None
    assert problem({"from": "1-row_wise", "under": "row_wise", "refused": "why"}, "rowwise_adagrad") == "refused"

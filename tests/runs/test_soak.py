"""Ranks that are killed at random moments: the launcher brings the run back, and nothing is lost."""

import pytest

from benchmarks.soak import soak


@pytest.mark.timeout(600)
def test_three_kills(clicks, tmp_path):
    outcomes = soak(clicks, tmp_path / "runs", kills=3, ranks=[2, 1, 2], seed=3)
    assert len(outcomes) == 3
    assert [each for each in outcomes if not (each.came_back and each.is_bit_equal)] == []

"""Exact and grouped areas of rows that lie on several ranks are those of all rows."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from dlrm_dist.verify.ranks import run_ranks
from tests.unit.test_metrics import EXACT
from tests.unit.test_ranking import grouped_by_definition
from tests.unit.test_ranking import rows as planted_rows


def test_areas_over_ranks(tmp_path):
    ranks = 3
    logits, labels = planted_rows(0.2, 9000, digits=2)
    rng = np.random.default_rng(0)
    groups, weights = rng.integers(-1, 40, 9000), rng.choice(np.float32([0, 0.5, 1]), 9000)
    groups[:3000] = 7  # one group is much larger than what is held
    np.savez(tmp_path / "rows.npz", logits=logits, labels=labels, groups=groups, weights=weights)
    run_ranks(Path(__file__).with_name("ranking_program.py"), ranks, str(tmp_path), timeout=150)
    found = json.loads((tmp_path / "found.json").read_text())
    for name, kept in (("spread", np.arange(9000)), ("tied", np.arange(9000)), ("few", np.arange(200))):
        if name == "few":
            kept = kept[kept % ranks != 1]
        z = 0 * logits[kept] if name == "tied" else logits[kept]
        y, w = labels[kept], weights[kept].astype(np.float64)
        auc, _, auprc, _, *grouped = found[name]
        assert auc == pytest.approx(roc_auc_score(y, z, sample_weight=w), abs=EXACT)
        assert auprc == pytest.approx(average_precision_score(y, z, sample_weight=w), abs=EXACT)
        assert grouped == pytest.approx(grouped_by_definition(groups[kept], z, y, w), rel=EXACT)
    assert not list(tmp_path.glob(".metrics-*"))

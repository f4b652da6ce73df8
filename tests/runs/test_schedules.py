"""Drops of the learning rate and early stopping in whole runs, and across a resume."""

import json

import pytest
import torch

from tests.runs.test_checkpoints import checkpoints, state, train

WORDS = [
    *("--optimizer.sparse", "adam", "--optimizer.dense", "adam", "--sharding.types", "data_parallel"),
    *("--optimizer.table_weight_decay", "1e-3", "--optimizer.clip_norm", "0.1", "--train.micro_batches", "3"),
    *("--schedule.warmup_steps", "4", "--schedule.decay", "plateau", "--schedule.factor", "0.5"),
    *("--schedule.patience", "2", "--schedule.stop_patience", "6", "--schedule.min_delta", "0.9"),
    *("--eval.every", "3", "--train.log_every", "1", "--train.learning_rate", "0.01", "--checkpoint.keep", "9"),
]
"""No AUC passes the first by .9, so that scores at 6, 9, 11, 12, 15, 18 are stale: rates halve behind 9, 12 and 18, and
the run ends there."""
RATES = [0.0025, 0.005, 0.0075, *[0.01] * 6, *[0.005] * 3, *[0.0025] * 6]


@pytest.fixture(scope="module")
def runs(clicks, tmp_path_factory):
    """A run to its early end, and one that is ended by its steps and then goes on: where a score is due for both."""
    folder = tmp_path_factory.mktemp("schedules")
    for name, words in [
        ("whole", ()),
        ("parts", ("--train.max_steps", "9")),
        ("parts", ("--train.resume", "auto")),
    ]:
        done = train(folder, clicks, 1, name, *WORDS, *words)
        assert done.returncode == 0, done.stderr
    assert "continuing after step 9 " in done.stdout
    assert "clipping to norm 0.1 covers the dense layers and 26 data-parallel tables; 0 tables" in done.stdout
    assert "no better than step 3" in done.stdout
    return folder


@pytest.mark.parametrize("name", ["whole", "parts"])
def test_rates_drop_and_the_run_ends(runs, name):
    lines = [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines()]
    assert [line["lr_dense"] for line in lines if line["split"] == "train"] == pytest.approx(RATES)
    scored = [(line["step"], line["stale"], line["drops"]) for line in lines if line["split"] == "valid"]
    assert scored == [(3, 0, 0), (6, 1, 0), (9, 2, 1), (11, 3, 1), (12, 4, 2), (15, 5, 2), (18, 6, 3)]
    result = json.loads((runs / name / "result.json").read_text())
    assert (result["steps"], result["best_step"], result["samples"]) == (18, 3, 1703)
    assert checkpoints(runs, name)[-1] == "step_000000018"


def test_a_resumed_run_is_bit_equal(runs):
    left, right = state(runs, "whole", 18), state(runs, "parts", 18)
    assert left.keys() == right.keys() and any("moment2" in key for key in left)
    assert [key for key in left if not torch.equal(left[key], right[key])] == []


def test_a_run_that_has_ended_early_is_only_scored_again(runs, clicks):
    done = train(runs, clicks, 1, "parts", *WORDS, "--train.resume", "auto")
    assert done.returncode == 0, done.stderr
    assert "continuing after step 18 " in done.stdout
    steps = [json.loads(line)["step"] for line in (runs / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == json.loads((runs / "parts" / "result.json").read_text())["steps"] == 18

"""Whole trainings under torchrun: what may change the losses, and what may not."""

import json
import math
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrm_dist.data.loader import SplitReader
from dlrm_dist.data.options import PrepareOptions
from dlrm_dist.data.prepare import prepare
from dlrm_dist.data.schema import read_info
from tests.helpers import ROOT, run_command
from tests.runs.conftest import TRAIN_ROWS, VALID_ROWS

BATCH_SIZE, EPOCHS = 100, 2
STEPS = 11
"""Of an epoch: ten whole ones, and one of three rows."""
RUNS = {
    "1 rank": (1, []),
    "2 ranks": (2, []),
    "2 ranks again": (2, []),
    "2 ranks, often scored": (2, ["--eval.every", "3"]),
    "3 ranks": (3, []),
}


def train(folder, data, world_size, *arguments):
    """Run to the end; returns what metrics.jsonl says of the two splits, and result.json."""
    launch = ["torchrun", "--standalone", "--nproc-per-node", world_size, ROOT / "launch" / "train.py"]
    always = ["--data.path", data, "--runtime.device", "cpu", "--eval.batch_size", 64]
    if "--train.log_every" not in arguments:
        always += ["--train.log_every", 1]
    done = run_command(*launch, *always, "--run.name", "mine", *arguments, folder=folder, timeout=100)
    assert done.returncode == 0, done.stderr[-3000:]
    run = folder / "runs" / "mine"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    split = {name: [line for line in lines if line["split"] == name] for name in ("train", "valid")}
    return split["train"], split["valid"], json.loads((run / "result.json").read_text())


@pytest.fixture(scope="module")
def runs(clicks, tmp_path_factory):
    shared = ["--train.batch_size", BATCH_SIZE, "--train.epochs", EPOCHS]
    return {
        name: train(tmp_path_factory.mktemp("run"), clicks, world_size, *shared, *arguments)
        for name, (world_size, arguments) in RUNS.items()
    }


def losses(run):
    return [line["loss"] for line in run[0]]


def scores(run, step):
    (line,) = [line for line in run[1] if line["step"] == step]
    return line


def test_the_same_seed_gives_the_same_run_bit_for_bit(runs):
    first, again = runs["2 ranks"], runs["2 ranks again"]
    assert losses(first) == losses(again) and len(set(losses(first))) == EPOCHS * STEPS
    assert first[1] == again[1]


def test_scoring_in_between_changes_nothing_bit_for_bit(runs):
    plain, scored = runs["2 ranks"], runs["2 ranks, often scored"]
    assert losses(plain) == losses(scored)
    assert [line["step"] for line in plain[1]] == [11, 22]
    assert [line["step"] for line in scored[1]] == [3, 6, 9, 11, 12, 15, 18, 21, 22]
    for step in (11, 22):
        assert scores(plain, step) == scores(scored, step)


@pytest.mark.parametrize("name", ["2 ranks", "3 ranks"])
def test_losses_do_not_depend_on_the_number_of_ranks(runs, name):
    """The same rows and weights, added up in float32 in another order (6e-8 each): 1e-6 over an epoch.

    Its last batch has three rows, one for a rank of two or of three. Then rounding may grow: 1e-4 over both epochs.
    """
    alone, several = losses(runs["1 rank"]), losses(runs[name])
    assert max(abs(a - b) for a, b in zip(alone[:STEPS], several[:STEPS], strict=True)) < 1e-6
    assert max(abs(a - b) for a, b in zip(alone, several, strict=True)) < 1e-4


@pytest.mark.parametrize("name", RUNS)
def test_every_row_is_trained_on_once_an_epoch(runs, name):
    samples = [line["samples"] for line in runs[name][0]]
    ends = [*range(BATCH_SIZE, TRAIN_ROWS, BATCH_SIZE), TRAIN_ROWS]
    assert samples == [epoch * TRAIN_ROWS + end for epoch in range(EPOCHS) for end in ends]
    assert [line["step"] for line in runs[name][0]] == list(range(1, EPOCHS * STEPS + 1))
    result = runs[name][2]
    assert (result["steps"], result["samples"]) == (EPOCHS * STEPS, EPOCHS * TRAIN_ROWS)


@pytest.mark.parametrize("name", RUNS)
def test_every_validation_row_is_scored_once(runs, clicks, name):
    info = read_info(clicks).splits["valid"]
    assert info.rows == VALID_ROWS
    for line in runs[name][1]:
        assert line["rows"] == VALID_ROWS
        assert line["click_rate"] == info.clicks / VALID_ROWS
    last = runs[name][1][-1]
    assert last["step"] == EPOCHS * STEPS
    assert all(runs[name][2][key] == last[key] for key in last if key != "step")


@pytest.mark.parametrize("name", ["2 ranks", "3 ranks"])
def test_scores_do_not_depend_on_the_number_of_ranks(runs, name):
    alone, several = scores(runs["1 rank"], 22), scores(runs[name], 22)
    assert several["log_loss"] == pytest.approx(alone["log_loss"], abs=1e-4)
    assert several["auc"] == pytest.approx(alone["auc"], abs=alone["auc_error"] + several["auc_error"])


def test_the_second_epoch_visits_the_rows_in_another_order(runs, clicks):
    """Told by the losses: with the first epoch's order the partial batch would be the same three rows."""
    reader = SplitReader(clicks, read_info(clicks), "train", 0, 1)
    last = [
        next(islice(reader.batches(reader.order(BATCH_SIZE, 0, epoch)), STEPS - 1, None)).dense[:3].tolist()
        for epoch in range(EPOCHS)
    ]
    assert last[0] != last[1]
    first, second = losses(runs["1 rank"])[:STEPS], losses(runs["1 rank"])[STEPS:]
    assert sum(second[:-1]) < sum(first[:-1])


def test_fewer_rows_than_one_batch(clicks, tmp_path):
    arguments = ["--train.batch_size", 5000, "--train.epochs", 3, "--train.max_steps", 2, "--train.seed", 1]
    trained, valid, result = train(tmp_path, clicks, 2, *arguments)
    assert [line["samples"] for line in trained] == [TRAIN_ROWS, 2 * TRAIN_ROWS]
    assert all(math.isfinite(line["loss"]) for line in trained)
    assert [line["step"] for line in valid] == [1, 2] and result["steps"] == 2


def test_lists_weights_and_expanded_ids_train_alike_on_any_number_of_ranks(tmp_path):
    number = np.arange(503)
    rng = np.random.default_rng(0)
    log = pa.table(
        {
            "clicked": rng.integers(0, 2, 503),
            "x": rng.random(503),
            "w": 1 + number % 3 / 2,
            "user": number % 17,
            "tags": [[int(n) % 5] * (int(n) % 4) for n in number],
        }
    )
    pq.write_table(log, tmp_path / "log.parquet")
    (tmp_path / "schema.toml").write_text(
        'label = "clicked"\ndense = ["x"]\nweight = "w"\n[categories]\nuser = {}\ntags = {}\n'
    )
    options = PrepareOptions(
        "parquet", schema=tmp_path / "schema.toml", split="0.8,0.2,0", min_count=1, lanes=12, group_rows=16
    )
    prepare([tmp_path / "log.parquet"], tmp_path / "data", options)
    words = ["--train.batch_size", 50, "--train.epochs", 1, "--data.expand_multi_hot", "[3, 1]"]
    found = []
    for world_size in (1, 2):
        folder = tmp_path / str(world_size)
        folder.mkdir()
        found.append(train(folder, tmp_path / "data", world_size, *words))
    alone, two = found
    assert len(losses(alone)) == len(losses(two)) == 9
    assert max(abs(a - b) for a, b in zip(losses(alone), losses(two), strict=True)) < 1e-6
    weights = float((1 + number[402:] % 3 / 2).sum())
    assert alone[1][-1]["rows"] == two[1][-1]["rows"] == weights


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_profiled_run_is_the_run_and_tells_where_its_time_goes(runs, clicks, tmp_path, world_size):
    words = ["--train.batch_size", BATCH_SIZE, "--train.epochs", EPOCHS, "--train.profile", "true"]
    found = train(tmp_path, clicks, world_size, *words, "--train.log_every", 4)
    alike = runs["1 rank" if world_size == 1 else "2 ranks"]
    assert found[1] == alike[1]  # the scores, bit for bit
    for line in found[0][:-1]:  # the last report follows two steps, of which none is a report's last
        parts = line["split_ms"]
        assert sum(parts.values()) == pytest.approx(line["step_ms"])
        assert parts.keys() >= {"input", "lookup", "update", "dense_forward", "dense_backward", "dense_optimizer"}
        assert (world_size == 1) or parts.keys() >= {"id_exchange", "forward_exchange", "all_reduce"}
    names = sorted(path.name for path in (tmp_path / "runs" / "mine" / "trace").iterdir())
    assert names == [f"rank{rank}.pt.trace.json.gz" for rank in range(world_size)]


def test_bf16_layers_train_almost_alike(runs, clicks, tmp_path):
    """bfloat16 has 8 bits of a number: losses of whole batches differ, by less than a hundredth over both epochs."""
    words = ["--train.batch_size", BATCH_SIZE, "--train.epochs", EPOCHS, "--train.precision", "bf16"]
    found, exact = losses(train(tmp_path, clicks, 2, *words)), losses(runs["2 ranks"])
    off = [abs(a - b) for step, (a, b) in enumerate(zip(found, exact, strict=True), 1) if step % STEPS]
    assert 0 < max(off) < 1e-2

"""PaddleRec's way of working, by the commands of its sample's recipe: slot text, a model an epoch, each one scored."""

import json
import random
import re

import pytest

from dlrm_dist.data.slot import SLOT_ROWS
from tests.helpers import ROOT, run_command

RECIPE = ROOT / "launch/configs/paddlerec_sample.toml"
ROWS, BATCH_SIZE, EPOCHS = 80, 2, 3
SMALL = ("--model.bottom_mlp", "8,16", "--model.top_mlp", "8,2")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder after the recipe's commands, and what the last two said."""
    folder, draw = tmp_path_factory.mktemp("paddlerec"), random.Random(0)
    rows = [
        " ".join(
            [f"click:{draw.randrange(2)}", *(f"dense_feature:{draw.random():.3f}" for _ in range(13))]
            + [f"{slot}:{draw.randrange(SLOT_ROWS)}" for slot in range(1, 27)]
        )
        for _ in range(ROWS)
    ]
    for name in ("sample_data.txt", "sample_test.txt"):
        (folder / name).write_text("\n".join(rows) + "\n")
    words = ("sample_data.txt", "data/paddlerec_sample", "--format", "slot", "--test", "sample_test.txt")
    assert run_command("dlrm-dist", "prepare", *words, folder=folder).returncode == 0
    launch = ("torchrun", "--standalone", "--nproc-per-node", "2", ROOT / "launch/train.py")
    trained = run_command(*launch, "--config", RECIPE, "--run.name", "sample", *SMALL, folder=folder)
    assert trained.returncode == 0, trained.stderr
    words = ("runs/sample", "data/paddlerec_sample", "--split", "test", "--each-checkpoint", "--json")
    scored = run_command("dlrm-dist", "evaluate", *words, folder=folder)
    assert scored.returncode == 0, scored.stderr
    return folder, trained.stdout, json.loads(scored.stdout)


def test_each_line_has_paddlerecs_fields_and_each_epoch_one(done):
    """Epoch, batch, AUC so far, loss, the costs of reader and batch, samples, samples a second."""
    _, told, _ = done
    number = r"([\d,.]+)"
    at, costs = rf"epoch {number} batch {number} step", rf"input {number} of {number} ms a step"
    scores, speed = rf"loss {number} .*\(epoch so far {number}\)", rf"{number} samples, {number} samples/s"
    found = re.findall(f"{at} .* {scores} {costs}, {speed}", told)
    assert [(row[0], row[1], row[6]) for row in found] == [
        (str(epoch), str(batch), str(((epoch - 1) * 40 + batch) * BATCH_SIZE))
        for epoch in range(1, EPOCHS + 1)
        for batch in (10, 20, 30, 40)
    ]
    epochs = re.findall(rf"epoch (\d) done: loss {number} auc {number} of 80 rows, behind {number} samples", told)
    assert [(epoch, samples) for epoch, _, _, samples in epochs] == [("1", "80"), ("2", "160"), ("3", "240")]
    assert [auc for _, _, auc, _ in epochs] == [row[3] for row in found if row[1] == "40"]


def test_each_saved_epoch_is_scored_as_it_was_in_training(done):
    folder, _, scored = done
    lines = [json.loads(line) for line in (folder / "runs/sample/metrics.jsonl").read_text().splitlines()]
    assert [(each["step"], each["epoch"]) for each in scored["scores"]] == [(40, 1), (80, 2), (120, 3)]
    reported = [line["auc"] for line in lines if line["split"] == "test"]
    assert [each["auc"] for each in scored["scores"]] == pytest.approx(reported, abs=1e-4)

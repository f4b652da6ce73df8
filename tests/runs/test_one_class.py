"""A run whose validation rows are of one class: no AUC can be told, and nothing breaks by that."""

import json

import pytest

from dlrm_dist.checkpoint import folder as folders
from dlrm_dist.data.options import PrepareOptions
from dlrm_dist.data.prepare import prepare
from dlrm_dist.data.synthetic import write_clicks
from tests.helpers import ROOT, run_command

UNTOLD = ("auc", "auprc", "ne", "calibration", "gauc")
SMALL = ("--model.embedding_dim", "8", "--model.bottom_mlp", "8", "--model.top_mlp", "1", "--train.batch_size", "100")


def strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one_class")
    write_clicks(folder / "train.tsv", 400)
    rows = (folder / "train.tsv").read_text().splitlines(keepends=True)
    (folder / "valid.tsv").write_text("".join("0" + row[1:] for row in rows[:100]))
    prepare([folder / "train.tsv"], folder / "data", PrepareOptions("kaggle", valid=(folder / "valid.tsv",)))
    words = ("--data.path", folder / "data", "--run.folder", folder / "runs", "--run.name", "it", *SMALL)
    words += ("--metrics.group_by", "C1", "--checkpoint.every", "2")
    for more in (("--train.max_steps", "3"), ("--train.epochs", "2", "--train.resume", "auto")):
        done = run_command("python", "launch/train.py", *map(str, words), *more, folder=ROOT)
        assert done.returncode == 0, done.stderr
    assert "continuing after step 3 " in done.stdout
    return folder / "runs"


def test_its_files_are_json_without_the_scores_that_cannot_be_told(runs):
    result = strict((runs / "it/result.json").read_text())
    lines = [strict(line) for line in (runs / "it/metrics.jsonl").read_text().splitlines()]
    for told in (result, *(line for line in lines if line["split"] == "valid")):
        assert [told[name] for name in UNTOLD] == [None] * len(UNTOLD) and told["log_loss"] > 0
    newest = folders.complete_ones(runs / "it/checkpoints")[-1]
    scores = folders.read_facts(newest).scores
    assert scores["log_loss"] == pytest.approx(result["log_loss"]) and not set(UNTOLD) & set(scores)


def test_an_epoch_in_which_the_run_went_on_says_of_how_many_rows_its_figures_are(runs):
    lines = [json.loads(line) for line in (runs / "it/metrics.jsonl").read_text().splitlines()]
    of_epochs = [(line["step"], line["epoch_samples"]) for line in lines if line["split"] == "train"]
    assert of_epochs == [(3, 300), (4, 100), (8, 400)]


def test_a_checkpoint_of_before_with_null_among_its_scores_is_read(runs):
    newest = folders.complete_ones(runs / "it/checkpoints")[-1]
    facts = newest / folders.FACTS
    text = facts.read_text()
    values = json.loads(text)
    facts.write_text(json.dumps({**values, "scores": {**values["scores"], "auc": None}}))
    assert folders.read_facts(newest).scores == values["scores"]
    facts.write_text(text)


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate", "it", "../data"),
        ("inspect", "it"),
        ("report", "it"),
        ("runs", "."),
        ("predict", "it", "../data", "scores.parquet"),
    ],
    ids=lambda words: words[0],
)
def test_commands(runs, words):
    done = run_command("dlrm-dist", *words, folder=runs)
    assert done.returncode == 0, done.stderr

"""`dlrm-dist evaluate`, as a user runs it."""

import json
import shutil

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

from dlrm_dist.checkpoint.saved_run import find
from dlrm_dist.checkpoint.source import open_source
from dlrm_dist.checkpoint.state import MODEL
from dlrm_dist.cli import main
from dlrm_dist.data.loader import SplitReader
from dlrm_dist.data.options import PrepareOptions
from dlrm_dist.data.prepare import prepare
from dlrm_dist.data.schema import read_info
from dlrm_dist.data.synthetic import write_clicks
from tests.helpers import ROOT, assert_refused, numbered_dataset, run_command
from tests.ranks.reference import ReferenceDLRM
from tests.runs.conftest import TRAIN_ROWS, VALID_ROWS
from tests.unit.test_metrics import expit
from tests.unit.test_ranking import grouped_by_definition

SHAPE = ("--model.embedding_dim", "8", "--model.bottom_mlp", "16,8", "--model.top_mlp", "16,1")
GROUP = "C9"
"""A category with a few values."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory, clicks):
    """A run of one rank: checkpoints at steps 4, 8 and 10, scored exactly at 5 and 10."""
    folder = tmp_path_factory.mktemp("evaluated")
    words = ["--data.path", clicks, "--train.batch_size", "100", "--train.max_steps", "10", "--checkpoint.every", "4"]
    words += ["--eval.every", "5", "--metrics.exact", "true", "--metrics.group_by", GROUP, "--checkpoint.keep", "9"]
    here = ["--run.folder", folder, "--run.name", "one", "--runtime.timeout_s", "60"]
    done = run_command("python", "launch/train.py", *SHAPE, *map(str, [*words, *here]), folder=ROOT)
    assert done.returncode == 0, done.stderr
    return folder


def evaluate(runs, *words, run="one"):
    return run_command("dlrm-dist", "evaluate", runs / run, *words, folder=ROOT)


def figures(done):
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def reported(runs, split="valid"):
    lines = map(json.loads, (runs / "one" / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line for line in lines if line["split"] == split}


def test_each_checkpoint_on_two_ranks_is_what_training_on_one_reported(runs, clicks):
    words = ("--ranks", "2", "--each-checkpoint", "--json")
    found, trained = figures(evaluate(runs, clicks, *words)), reported(runs)
    assert (found["rows"], found["ranks"], found["split"]) == (VALID_ROWS, 2, "valid")
    scores = {each["step"]: each for each in found["scores"]}
    assert set(scores) > {4, 8, 10} >= set(trained) - {5} and {5, 10} == set(trained)
    for step, line in trained.items():
        for name in ("rows", "auc", "auprc", "log_loss", "ne", "accuracy", "calibration", "gauc", "gauc_groups"):
            # Weights are the same; the all-to-all and the layers' sums may differ in the last bits of a score.
            assert scores[step][name] == pytest.approx(line[name], rel=1e-4), name
        assert scores[step]["auc_error"] == scores[step]["auprc_error"] == 0
    assert len({each["auc"] for each in scores.values()}) > 2
    assert {each["epoch"] for each in scores.values()} == {None}  # none was saved for an epoch's end
    assert not list((runs / "one").glob(".metrics-*"))


def test_exact_and_binned_figures_are_those_of_scikit_learn(runs, clicks):
    """Of the training split, from logits computed here with the checkpoint's tensors."""
    logits, labels, groups = reference(runs, clicks)
    (exact,) = figures(evaluate(runs, clicks, "--split", "train", "--json"))["scores"]
    assert exact["rows"] == TRAIN_ROWS == len(labels)
    assert exact["auc"] == pytest.approx(roc_auc_score(labels, logits), abs=1e-6)
    assert exact["auprc"] == pytest.approx(average_precision_score(labels, logits), abs=1e-5)
    assert exact["log_loss"] == pytest.approx(log_loss(labels, expit(logits)), rel=1e-6)
    mean, count, rows = grouped_by_definition(groups, logits, labels, np.ones(len(labels)))
    assert exact["gauc"] == pytest.approx(mean, abs=1e-5) and (exact["gauc_groups"], exact["gauc_rows"]) == (
        count,
        rows,
    )
    words = ("--split", "train", "--metrics.exact", "false", "--json", "--ranks", "2", "--eval.batch_size", "301")
    (binned,) = figures(evaluate(runs, clicks, *words))["scores"]
    assert 0 < binned["auc_error"] < 0.01 and abs(binned["auc"] - exact["auc"]) <= binned["auc_error"] + 1e-6
    assert abs(binned["auprc"] - exact["auprc"]) <= binned["auprc_error"] + 1e-6
    assert binned["rows"] == TRAIN_ROWS and binned["gauc"] == pytest.approx(exact["gauc"], abs=1e-5)


def reference(runs, data):
    """Logits, labels and groups of the training rows by a model of plain PyTorch modules."""
    source, info = open_source(runs / "one"), read_info(data)
    weights = {key.removeprefix(MODEL): source.read(key) for key in source.sizes if key.startswith(MODEL)}
    model = ReferenceDLRM(weights, [category.name for category in info.categories])
    reader = SplitReader(data, info, "train", 0, 1)
    logits, labels, groups = [], [], []
    with torch.no_grad():
        for batch in reader.batches(reader.order(TRAIN_ROWS, seed=None)):
            ids = batch.sparse.values().view(len(info.categories), -1).T.long()
            logits.append(model(batch.dense[: len(ids)], ids).numpy())
            labels.append(batch.labels[: len(ids)].numpy())
            groups.append(batch.sparse[GROUP].values().numpy())
    return np.concatenate(logits), np.concatenate(labels), np.concatenate(groups)


def test_text_and_a_chosen_checkpoint(runs, clicks):
    best = max(reported(runs).values(), key=lambda line: line["auc"])
    done = evaluate(runs, clicks, "--checkpoint", "best")
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines()[1:]}
    assert lines["step"] == str(best["step"]) and float(lines["auc"]) == pytest.approx(best["auc"], abs=1e-6)
    assert f"valid: {VALID_ROWS} rows, 1 rank" in done.stdout.splitlines()[0] and done.stderr == ""


def test_torchrun_and_a_curve_as_text(runs, clicks):
    words = ["torchrun", "--nproc_per_node", "2", "launch/evaluate.py", runs / "one", clicks, "--each-checkpoint"]
    done = run_command(*words, folder=ROOT)
    assert done.returncode == 0, done.stderr
    about, head, *lines = done.stdout.splitlines()
    assert "2 ranks" in about and head.split()[:3] == ["step", "epoch", "auc"]
    curve = {int(line.split()[0]): float(line.split()[2]) for line in lines}
    assert curve[10] == pytest.approx(reported(runs)[10]["auc"], rel=1e-4)


@pytest.fixture
def broken(tmp_path, runs):
    """A copy of the run to be damaged."""
    shutil.copytree(runs / "one", tmp_path / "one")
    return tmp_path


def test_other_columns_and_rows(runs, tmp_path, capsys):
    numbered_dataset(tmp_path / "other", {"valid": 20})
    told = refusal(capsys, runs / "one", tmp_path / "other")
    assert "has other dense columns than the run (2, the run 13): lacks I3" in told
    write_clicks(tmp_path / "new.tsv", 300, seed=9)
    for name, vocabulary in (("ids", None), ("fits", runs / "one")):
        options = PrepareOptions("kaggle", lanes=12, group_rows=16, vocabulary=vocabulary)
        prepare([tmp_path / "new.tsv"], tmp_path / name, options)
    told = refusal(capsys, runs / "one", tmp_path / "ids")
    assert told.startswith(f"error: {tmp_path / 'ids'}: ") and f"with its ids: --vocabulary {runs / 'one'}" in told
    assert "has no split 'valid'; it has train" in refusal(capsys, runs / "one", tmp_path / "fits")
    (found,) = figures(evaluate(runs, tmp_path / "fits", "--split", "train", "--json"))["scores"]
    assert found["rows"] == 300


def refusal(capsys, *words):
    """The line of a command that refuses to work, in this process: that the words come here, others show."""
    assert main(["evaluate", *map(str, words)]) == 2
    out, told = capsys.readouterr()
    assert told.startswith("error: ") and told.count("\n") == 1 and out == ""
    return told


def test_an_empty_split_and_damage(broken, clicks, capsys):
    shutil.copytree(clicks, broken / "data")
    info = json.loads((broken / "data" / "dataset.json").read_text())
    info["splits"]["empty"] = {"rows": 0, "clicks": 0, "parts": []}
    (broken / "data" / "dataset.json").write_text(json.dumps(info))
    assert "split empty has no rows" in refusal(capsys, broken / "one", broken / "data", "--split", "empty")
    file = next((broken / "one" / "checkpoints" / "step_000000010").glob("*.distcp"))
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    done = evaluate(broken, clicks, "--ranks", "2")
    assert_refused(done, f"file {file.name} is damaged; choose another: --checkpoint STEP")
    shutil.rmtree(broken / "one" / "checkpoints")
    assert "the run has no complete checkpoint" in refusal(capsys, broken / "one", clicks)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--checkpoint", "7"), "has no checkpoint '7'; allowed: newest, best, or a step, here 4, 5, 8, 10"),
        (("--checkpoint", "4", "--each-checkpoint"), "exclude each other"),
        (("--split", "tset"), "has no split 'tset'; it has train, valid"),
        (("--ranks", "0"), "--ranks is 0"),
        (("--ranks", "13"), "is written in 12 lanes, too few for 13 ranks"),
        (("--eval.batch_size", "1", "--ranks", "2"), "eval.batch_size is 1, the global batch of 2 ranks"),
        (("--metrics.group_by", "C99"), "metrics.group_by is 'C99'; allowed: one of the dataset's 26 categories"),
        (("--model.top_mlp", "8,1"), "--model.top_mlp: is not to be set here"),
        (("--metrics.exat", "true"), "did you mean metrics.exact?"),
    ],
)
def test_mistakes_are_one_line(runs, clicks, words, said, capsys):
    assert said in refusal(capsys, runs / "one", clicks, *words)


def test_what_is_no_run(runs, clicks, tmp_path, capsys):
    assert "is no run's folder" in refusal(capsys, clicks, clicks)
    assert "is no run's folder" in refusal(capsys, tmp_path / "none", clicks)
    assert "is a checkpoint; name its run" in refusal(capsys, find(runs / "one").checkpoint, clicks)

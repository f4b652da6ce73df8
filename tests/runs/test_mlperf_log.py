"""MLPerf's log of a run, read by MLPerf's own checker."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import mlperf_logging.compliance_checker as package
import pytest
from mlperf_logging.compliance_checker import mlp_compliance

from dlrm_dist import config
from dlrm_dist.mlperf_log import MlperfLog
from tests.helpers import ROOT, run_command
from tests.runs.conftest import TRAIN_ROWS, VALID_ROWS

RULES = "6.0.0"
"""The last rules that know DLRM-DCNv2."""
MODEL = (
    *("--model.name", "dlrm_dcnv2", "--model.embedding_dim", "8", "--model.bottom_mlp", "16,8"),
    *("--model.top_mlp", "16,1", "--model.cross_rank", "4"),
)
CLOSED = ("--optimizer.sparse", "adagrad", "--optimizer.dense", "adagrad", "--train.learning_rate", "0.01")


@pytest.fixture(scope="module")
def run(clicks, tmp_path_factory):
    """A scaled-down run's folder."""
    folder = tmp_path_factory.mktemp("mlperf")
    words = ["--data.path", clicks, "--run.name", "mine", "--train.mlperf_log", "true", "--eval.every", 7]
    launch = ["torchrun", "--standalone", "--nproc-per-node", 2, ROOT / "launch" / "train.py"]
    words += ["--train.batch_size", 100, "--train.epochs", 1, "--eval.batch_size", 64, *MODEL, *CLOSED]
    done = run_command(*launch, *words, folder=folder, timeout=100)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "runs" / "mine"


def complaints(log, rules_folder):
    """The keys that a checker with the rules of a folder complains of."""
    checker = mlp_compliance.make_checker("training", RULES, quiet=False, werror=True)
    mlp_compliance.main(str(log), str(rules_folder / "common.yaml"), checker)
    return sorted(checker.overwritable), checker.not_overwritable


def test_the_public_checker_misses_nothing_but_what_the_full_run_alone_can_meet(run):
    rules = Path(package.__file__).parent / f"training_{RULES}"
    keyed, others = complaints(run / "mlperf.log", rules)
    assert keyed == ["eval_samples"]
    assert len(others) == 1 and "eval_accuracy" in others[0] and "0.80275" in others[0]


def test_rules_scaled_to_the_run_miss_nothing(run, tmp_path, monkeypatch):
    rules = tmp_path / f"training_{RULES}"
    shutil.copytree(Path(package.__file__).parent / rules.name, rules)
    closed = rules / "closed_dlrm_dcnv2.yaml"
    text, samples = re.subn(r"== 89137319\b", f"== {VALID_ROWS}", closed.read_text())
    text, target = re.subn(r">= 0\.80275", ">= 0.2", text)
    assert (samples, target) == (1, 1)
    closed.write_text(text)
    # Rules name further files relative to the checker's own.
    monkeypatch.setattr(mlp_compliance, "__file__", str(tmp_path / "mlp_compliance.py"))
    assert complaints(run / "mlperf.log", rules) == ([], [])


def test_counts_are_the_runs_own(run):
    log = (run / "mlperf.log").read_text()
    for key, value in {"train_samples": TRAIN_ROWS, "eval_samples": VALID_ROWS, "trained_samples": TRAIN_ROWS}.items():
        assert re.findall(rf'"key": "{key}", "value": (\d+)', log) == [str(value)]
    assert len(re.findall('"key": "eval_accuracy"', log)) == 2


def test_other_models_are_refused(clicks, tmp_path):
    words = ("--data.path", clicks, "--train.mlperf_log", "true")
    done = run_command("python", ROOT / "launch" / "train.py", *words, folder=tmp_path)
    assert done.returncode == 2 and not (tmp_path / "runs").exists()
    assert "model.name dlrm_dcnv2, and this one is dlrm;" in done.stderr


def log_of_the_recipe(path, aucs, *words):
    """What a run by the full recipe would log if its evaluations gave these AUCs."""
    section = config.load(["--config", str(ROOT / "launch/configs/mlperf_dcnv2.toml"), *words])
    rows = {"train": 4_195_197_692, "valid": 89_137_319}
    info = SimpleNamespace(splits={split: SimpleNamespace(rows=number) for split, number in rows.items()})
    log = MlperfLog(path, section, info, began=1.8e9)
    log.begins(0, 64_014)
    for number, auc in enumerate(aucs, 1):
        step = number * section.eval.every
        line = {"step": step, "samples": step * section.train.batch_size}
        log.scoring(line)
        log.scored({**line, "auc": auc, "stale": number})
    log.ends({"samples": line["samples"]})
    return [json.loads(line.partition(" ")[2]) for line in path.read_text().splitlines()]


def test_the_full_recipe_logs_what_the_rules_want(tmp_path):
    lines = log_of_the_recipe(tmp_path / "mlperf.log", [0.79, 0.8028], "--optimizer.sparse", "adagrad")
    assert complaints(tmp_path / "mlperf.log", Path(package.__file__).parent / f"training_{RULES}") == ([], [])
    keys = [line["key"] for line in lines]
    assert keys.count("block_start") == keys.count("block_stop") == 2
    assert (lines[-1]["key"], lines[-1]["metadata"]["status"]) == ("run_stop", "success")


def test_a_run_that_misses_its_target_is_no_success(tmp_path):
    assert log_of_the_recipe(tmp_path / "mlperf.log", [0.79, 0.80])[-1]["metadata"]["status"] == "aborted"


def test_a_run_that_no_longer_improves_has_all_its_blocks_closed(tmp_path):
    words = ("--schedule.stop_patience", "2", "--schedule.target_auc", "1")
    lines = log_of_the_recipe(tmp_path / "mlperf.log", [0.79, 0.79], *words)
    keys = [line["key"] for line in lines]
    assert keys.count("block_start") == keys.count("block_stop") == 2
    assert lines[-1]["metadata"]["status"] == "aborted"


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ((), (0.004, 0, 0)),
        (("--optimizer.sparse_learning_rate", ".3"), ("0.3+0.004", 0, 0)),
        (("--schedule.decay", "polynomial"), (0.004, 0, 64_014)),
        (("--schedule.decay", "cosine", "--schedule.warmup_steps", "14"), (0.004, 14, 64_000)),
        (
            ("--schedule.decay", "polynomial", "--schedule.start", "9", "--schedule.steps", "5"),
            (0.004, 9, 5),
        ),
    ],
)
def test_learning_rates_are_logged_as_they_are(tmp_path, words, wanted):
    lines = log_of_the_recipe(tmp_path / "mlperf.log", [0.8028], *words)
    values = {line["key"]: line["value"] for line in lines}
    keys = ("base_learning_rate", "learning_rate_decay_start_step", "learning_rate_decay_steps")
    assert tuple(values[f"opt_{key}"] for key in keys) == wanted

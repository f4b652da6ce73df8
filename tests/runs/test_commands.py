"""Commands as a user calls them: exit codes, and what is on stderr and on disk."""

import json
import math

import pyarrow as pa
import pytest

from dlrm_dist.config import load
from tests.helpers import ROOT, numbered_dataset, run_command
from tests.unit.test_loader import replace_column

TRAIN = ROOT / "launch" / "train.py"


def error_line(*words, folder):
    """The one line on stderr of a command that refuses to work."""
    done = run_command(*words, folder=folder)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stdout
    return done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "VERB; see dlrm-dist --help"),
        (["trian"], "invalid choice: 'trian'"),
        (["synth"], "required: out; see dlrm-dist synth --help"),
        (["synth", "none/clicks.tsv"], "none/clicks.tsv: cannot be written"),
        (["synth", "clicks.tsv", "--rows", "many"], "--rows: invalid int value: 'many'"),
        (["synth", "clicks.tsv", "--rows", "0"], "rows=0"),
        (["prepare", "none.tsv", "data", "--format", "kaggle"], "none.tsv: no such file"),
        (["prepare", "none.tsv", "data"], "required: --format"),
    ],
)
def test_mistakes_in_a_command_about_data(tmp_path, words, told):
    assert told in error_line("dlrm-dist", *words, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--train.bach_size", "3"], "unknown config key train.bach_size: did you mean train.batch_size?"),
        (["--train.batch_size", "many"], "train.batch_size: Input should be a valid integer"),
        (["--data.path", "none"], "none: no prepared dataset here"),
    ],
)
def test_mistakes_in_a_training_command(tmp_path, words, told):
    assert told in error_line("python", TRAIN, *words, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_id_beyond_its_table(tmp_path):
    numbered_dataset(tmp_path / "data", {"train": 20, "valid": 5})
    replace_column(tmp_path / "data", "C2", pa.array([0] * 19 + [7]))
    words = ["--data.path", "data", "--train.batch_size", "10", "--run.name", "mine"]
    told = error_line("python", TRAIN, *words, folder=tmp_path)
    assert "split train, column C2: id 7 lies outside its table of 7 rows" in told
    assert not (tmp_path / "runs" / "mine" / "result.json").exists()


def test_torchx_refuses_before_a_rank_starts(tmp_path):
    launch = ["torchx", "run", "-s", "local_cwd", "-cfg", "log_dir=logs", "dist.ddp", "-j", "1x2"]
    done = run_command(*launch, TRAIN, "--train.bach_size", "3", folder=tmp_path)
    assert done.returncode == 2
    assert "error: unknown config key train.bach_size: did you mean train.batch_size?\n" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert list(tmp_path.iterdir()) == []


def test_from_nothing_to_a_scored_model(tmp_path):
    rows = {"train": 3200, "valid": 400, "test": 400}
    done = run_command("dlrm-dist", "synth", "clicks.tsv", "--rows", "4000", folder=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("clicks.tsv: 4,000 rows, ")
    words = ["prepare", "clicks.tsv", "data", "--format", "kaggle", "--split", "0.8,0.1,0.1"]
    done = run_command("dlrm-dist", *words, folder=tmp_path)
    assert done.returncode == 0
    assert [f"data: {name} {count:,} rows, " in done.stdout for name, count in rows.items()] == [True] * 3

    words = ["--data.path", "data", "--train.batch_size", "100", "--train.epochs", "2", "--runtime.device", "cpu"]
    done = run_command("python", TRAIN, *words, "--eval.split", "test", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    (run,) = (tmp_path / "runs").iterdir()
    assert done.stdout.splitlines()[-1].endswith(f"; run folder {run.relative_to(tmp_path)}")
    assert {path.name for path in run.iterdir()} == {
        ".lock",
        "checkpoints",
        "config.toml",
        "dataset.json",
        "plan.json",
        "environment.json",
        "metrics.jsonl",
        "report.html",
        "result.json",
        "state.json",
        "tensorboard",
        "vocabulary",
    }
    check_run(run)


def check_run(run):
    written = load(["--config", str(run / "config.toml")])
    assert (written.train.batch_size, written.eval.split, written.train.seed) == (100, "test", 0)
    (tables,) = json.loads((run / "plan.json").read_text())["modules"].values()
    assert sorted(tables) == sorted(f"t_C{number}" for number in range(1, 27))
    assert {table["sharding_type"] for table in tables.values()} <= {"table_wise", "row_wise"}
    environment = json.loads((run / "environment.json").read_text())
    assert (environment["world_size"], environment["device"]) == (1, "cpu")
    assert {"torch", "torchrec", "pyarrow"} <= set(environment["packages"])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["split"]) for line in lines] == [
        (32, "train"),
        (32, "test"),
        (50, "train"),
        (64, "train"),
        (64, "test"),
    ]
    result = json.loads((run / "result.json").read_text())
    assert (result["rows"], result["steps"], result["samples"]) == (400, 64, 6400)
    # The planted signal's best is 0.83; 400 rows leave a standard deviation of 0.03 around what was learned.
    assert 0.6 < result["auc"] < 0.9
    assert result["ne"] < 1.1 and math.isfinite(result["log_loss"]) and result["samples_per_s"] > 0

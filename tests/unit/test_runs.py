"""Runs as their folders tell of them: states, the table, the page."""

import json
import re
import shutil

import pytest
from filelock import FileLock

from dlrm_dist import config
from dlrm_dist.errors import UserError
from dlrm_dist.interruption import InterruptedRunError
from dlrm_dist.pages import charts, html
from dlrm_dist.runs import record, report, state, table
from tests.helpers import ROOT, numbered_dataset

PLAN = sorted((ROOT / "sharding_plans").glob("*.plan.json"))[0]


def make_run(folder, name, rate=0.02, steps=3, auc=0.7):
    """A finished run of so many reports."""
    run = folder / name
    run.mkdir()
    config.load(["--train.learning_rate", str(rate), "--run.name", name]).write(run / "config.toml")
    shutil.copy(PLAN, run / "plan.json")
    numbered_dataset(folder / f"data-{name}", {"train": 60, "valid": 24})
    shutil.copy(folder / f"data-{name}" / "dataset.json", run)
    (run / "environment.json").write_text(json.dumps({"device": "cpu", "packages": {"torch": "2.13.0"}}))
    measured = {"samples_per_s": 1e4, "step_ms": 5.0, "split_ms": {"input": 1.0}, "host_peak_mib": 500.0}
    lines = [
        {
            "step": n,
            "split": "train",
            "loss": 0.7 / n,
            "auc": 0.6,
            "ne": 0.95,
            "lr_sparse": rate,
            "lr_dense": rate,
            **measured,
        }
        for n in range(1, steps + 1)
    ]
    lines.append({"step": steps, "split": "valid", "auc": auc, "log_loss": 0.5, "ne": 0.9, "rows": 24.0})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with state.noted(run):
        result = {"auc": auc, "log_loss": 0.5, "samples_per_s": 9e3, "steps": steps, "run": str(run)}
        (run / "result.json").write_text(json.dumps(result))
    return run


@pytest.fixture
def runs(tmp_path):
    return [make_run(tmp_path, "a", auc=0.7), make_run(tmp_path, "b", rate=0.5, steps=30, auc=0.8)]


def test_a_run_notes_how_it_ends(tmp_path):
    for error, expected in ((InterruptedRunError("stop"), "interrupted"), (RuntimeError("bad\nmore"), "failed")):
        with pytest.raises(type(error)), state.noted(tmp_path):
            raise error
        assert state.read(tmp_path)["state"] == expected
    assert state.read(tmp_path)["reason"] == "bad"
    with state.noted(tmp_path):
        pass
    assert state.read(tmp_path)["state"] == "finished"


def test_a_run_that_holds_no_lock_was_killed(tmp_path):
    with state.noted(tmp_path):
        with FileLock(tmp_path / state.LOCK):
            assert state.read(tmp_path)["state"] == state.read(tmp_path)["state"] == "running"
        killed = state.read(tmp_path)
    assert killed["state"] == "failed" and "SIGKILL" in killed["reason"]


def test_a_report_that_is_being_written_is_left_out_and_a_damaged_one_named(runs):
    path = runs[0] / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"step": 99, "spl')
    assert record.read(runs[0]).step == 3
    path.write_text("{}\n" + whole)
    with pytest.raises(UserError, match=r"metrics\.jsonl: is damaged"):
        record.read(runs[0])
    found, damaged = table.find(runs[0].parent)
    assert [run.name for run in found] == ["b"] and len(damaged) == 1


def rows_of(folder):
    return [table.row(run) for run in table.find(folder)[0]]


@pytest.mark.parametrize(
    ("filters", "sort", "expected"),
    [
        ([], "name", "ab"),
        ([], "auc", "ba"),
        ([], "train.learning_rate", "ab"),
        (["train.learning_rate=0.50"], "name", "b"),
        (["state=finished", "step=3"], "name", "a"),
        (["model.bottom_mlp=64,16", "schedule.steps=none", "checkpoint.async=true"], "name", "ab"),
        (["state=failed"], "name", ""),
    ],
)
def test_the_table_is_filtered_and_sorted(runs, filters, sort, expected):
    found = table.select(rows_of(runs[0].parent), filters, sort)
    assert "".join(one["name"] for one in found) == expected
    lines = list(table.text(found, sort))
    assert len(lines) == 1 + len(expected) and lines[0].split()[:2] == ["name", "state"]
    assert ("train.learning_rate" in lines[0]) == (sort == "train.learning_rate")


@pytest.mark.parametrize(
    ("filters", "sort", "said"),
    [
        (["state"], "name", "key=value"),
        (["train.learning_rat=1"], "name", "did you mean train.learning_rate"),
        ([], "samples_per", "did you mean samples_per_s"),
    ],
)
def test_unknown_keys_are_refused(runs, filters, sort, said):
    with pytest.raises(UserError, match=said):
        table.select(rows_of(runs[0].parent), filters, sort)


def test_folders_that_are_no_folder_of_runs_are_refused(runs, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, said in ((runs[0], "is a run"), (tmp_path / "empty", "no runs"), (tmp_path / "none", "no folder")):
        with pytest.raises(UserError, match=said):
            table.find(folder)
    with pytest.raises(UserError, match="not the folder of a run"):
        record.read(tmp_path)


def test_a_page_about_one_run_stands_alone(runs, tmp_path):
    report.write([runs[1]], tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert not re.search(r"<script|(src|href)=|https?://|url\(", text)
    for word in ("Log loss", "train.learning_rate", "0.5", "rank 0", "finished", "2.13.0", "not told apart"):
        assert word in text
    assert len(re.findall(r'class="curve', text)) == 10  # two losses, two AUCs, two NEs, speed, two rates, memory


def test_runs_side_by_side(runs, tmp_path):
    (runs[0] / "plan.json").write_text("{}")
    report.write(runs, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert "a train" in text and "b valid" in text and "dashed" in text
    assert "make it anew" in text, "a plan that cannot be read is said, and the rest is shown"
    with pytest.raises(UserError, match="cannot be written"):
        report.write(runs, tmp_path / "none" / "r.html")


def test_curves_lie_where_their_values_are():
    chart = charts.curves([charts.Curve("x", 0, [(0, 1.0), (5, float("nan")), (10, 3.0)])])
    (curve,) = chart["curves"]
    low, high = 260 * (1 - 0.04 / 1.08), 260 * 0.04 / 1.08
    assert curve["d"] == f"M0.0 {low:.1f} L1000.0 {high:.1f}" and curve["last"] == 3.0
    assert [label for _, label in chart["xs"]] == ["0", "2", "4", "6", "8", "10"]
    assert charts.curves([charts.Curve("x", 0, [(1, float("nan"))])]) is None
    spike = [(n, 1.0 + n / 100) for n in range(40)]
    assert charts.curves([charts.Curve("x", 0, [(0, 1e6), *spike])])["beyond"] == 1
    assert len(charts.curves([charts.Curve("x", 0, [(n, n) for n in range(10_000)])])["curves"][0]["dots"]) <= 400


def test_figures_are_readable():
    values = [None, True, 1234567, 0.123456789, 12345.6, 2.0, [64, 16], "x"]
    assert [html.figure(each) for each in values] == ["", "true", "1,234,567", "0.12346", "12,346", "2", "64, 16", "x"]

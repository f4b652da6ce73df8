"""Runs with managed collisions, as a user calls them: stopped and continued, started from, and what is refused."""

import itertools
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import log_loss

from dlrm_dist.checkpoint.init_from import _managed_problem
from dlrm_dist.checkpoint.saved_run import find
from dlrm_dist.checkpoint.source import open_source
from dlrm_dist.cli import main
from dlrm_dist.data.options import PrepareOptions
from dlrm_dist.data.prepare import prepare
from dlrm_dist.data.schema import RAW_IDS
from dlrm_dist.models.managed import mixed
from dlrm_dist.serving.managed import load_maps, read_maps
from tests.helpers import ROOT, run_command
from tests.runs.serving import tool

MANAGED = ("--model.managed_collisions", "C3,C8", "--model.managed_rows", "24", "--model.eviction_interval", "5")
OPTIMIZER = ("--optimizer.sparse", "adagrad")
MODEL = ("--model.embedding_dim", "8", "--model.bottom_mlp", "16,8", "--model.top_mlp", "16,1")


@pytest.fixture(scope="module")
def raw_clicks(clicks):
    """The planted clicks with raw ids in two columns: 31 and 101 of them, more than the tables have rows."""
    rows = clicks.parent
    options = PrepareOptions("kaggle", valid=(rows / "valid.tsv",), raw=("C3", "C8"), lanes=12, group_rows=16)
    prepare([rows / "train.tsv"], rows / "raw", options)
    return rows / "raw"


def train(runs, data, ranks, name, *words):
    fixed = ("--data.path", data, "--train.batch_size", "100", "--runtime.timeout_s", "60", "--runtime.device", "cpu")
    here = ("--run.folder", runs, "--run.name", name)
    launcher = ["torchrun", "--nproc_per_node", str(ranks)] if ranks > 1 else ["python"]
    return run_command(*launcher, "launch/train.py", *MODEL, *MANAGED, *fixed, *here, *words, folder=ROOT)


@pytest.fixture(scope="module")
def whole_run(raw_clicks, tmp_path_factory):
    """16 steps on two ranks, saved after 7 too: two steps behind the last count of the ids."""
    runs = tmp_path_factory.mktemp("runs")
    words = ("--train.max_steps", "16", "--checkpoint.every", "7", "--checkpoint.keep", "9", *OPTIMIZER)
    done = train(runs, raw_clicks, 2, "whole", *words)
    assert done.returncode == 0, done.stderr
    return runs / "whole"


def test_a_continued_run_ends_with_the_same_weights_moments_and_maps(whole_run, raw_clicks, capsys):
    again = whole_run.with_name("again")
    shutil.copytree(whole_run, again)
    for path in sorted((again / "checkpoints").glob("step_*"))[1:]:
        shutil.rmtree(path)
    words = ("--train.max_steps", "16", "--train.resume", "auto", *OPTIMIZER)
    done = train(whole_run.parent, raw_clicks, 2, "again", *words)
    assert done.returncode == 0, done.stderr
    assert "continuing after step 7" in done.stdout
    assert main(["checkpoint", "diff", str(whole_run), str(again)]) == 0
    assert capsys.readouterr().out.startswith("0 of ")


def test_another_number_of_ranks_is_refused_by_name(whole_run, raw_clicks, tmp_path, capsys):
    """Resumed; started from; and by the tool that writes checkpoints anew."""
    shutil.copytree(whole_run, tmp_path / "whole")
    done = train(tmp_path, raw_clicks, 1, "whole", "--train.resume", "auto", *OPTIMIZER)
    assert done.returncode == 2 and "ids of managed collisions are bound, 2, this run has 1" in done.stderr
    source = open_source(whole_run)
    (segments,) = (key for key in source.sizes if key.endswith("t_C8._output_segments_tensor"))
    state = {segments: torch.tensor([0, 24, *[-1] * 1023])}  # of one rank
    told = _managed_problem(source, state, {"t_C8": None})
    assert told.startswith("t_C8 has managed collisions, whose ids are bound to 2 ranks, and here are 1")
    assert _managed_problem(source, {segments: source.read(segments)}, {"t_C8": None}) is None
    assert "of another vocabulary" in _managed_problem(source, state, {"t_C8": np.zeros(3, np.int64)})
    done = run_command("dlrm-dist", "evaluate", whole_run, raw_clicks, "--ranks", "1", folder=ROOT)
    assert done.returncode == 2 and "t_C3 has managed collisions, whose ids are bound to 2 ranks" in done.stderr
    config = ["--config", str(whole_run / "config.toml")]
    plan = str(tmp_path / "p.json")
    assert main(["plan", "make", *config, "--cluster", "cpu:1x3", "--out", plan]) == 0
    capsys.readouterr()
    assert main(["checkpoint", "reshard", str(whole_run), str(tmp_path / "out"), "--plan", plan]) == 2
    assert "whose ids are bound to 2 ranks; the plan is for 3" in capsys.readouterr().err
    assert main(["verify", *config]) == 2
    assert capsys.readouterr().err.startswith("error: model.managed_collisions: unsharded tables have no rows")


def test_a_run_is_scored_on_as_many_ranks(whole_run, raw_clicks):
    done = run_command("dlrm-dist", "evaluate", whole_run, raw_clicks, "--ranks", "2", "--json", folder=ROOT)
    assert done.returncode == 0, done.stderr
    assert f'"auc": {json.loads((whole_run / "result.json").read_text())["auc"]}' in done.stdout


def test_a_run_starts_from_the_whole_tensors_of_another(whole_run, raw_clicks, tmp_path):
    """With a rate of 0 it ends as it began: after a step, before ids are counted, with all weights and maps."""
    assert main(["checkpoint", "unshard", str(whole_run), str(tmp_path / "whole")]) == 0
    words = ("--model.init_from", tmp_path / "whole", "--train.max_steps", "1", "--train.learning_rate", "0")
    done = train(tmp_path, raw_clicks, 2, "new", *words)
    assert done.returncode == 0, done.stderr
    before, after = open_source(whole_run), open_source(tmp_path / "new")
    keys = [key for key in after.sizes if key.startswith("model.") and not key.endswith("_current_iter_tensor")]
    maps = [key for key in keys if key.endswith("_mch_sorted_raw_ids")]
    assert len(maps) == 2 and all((after.read(key) < RAW_IDS).sum() == 22 for key in maps)
    assert all(torch.equal(before.read(key), after.read(key)) for key in keys)


def test_a_run_on_two_ranks_scores_elsewhere_as_it_did(whole_run, raw_clicks, tmp_path):
    """By its checkpoint and by an export, prepared rows and raw ones: the log loss is that of the two ranks."""
    done = tool("export", whole_run, tmp_path / "out", "--embeddings", "fp32")
    assert done.returncode == 0, done.stderr
    shutil.copytree(tmp_path / "out", tmp_path / "moved")  # it needs nothing but its folder
    shutil.rmtree(tmp_path / "out")
    rows = (raw_clicks, "--keep", "label"), (raw_clicks.parent / "valid.tsv", "--keep", "label", "--format", "kaggle")
    wanted = json.loads((whole_run / "result.json").read_text())["log_loss"]
    first = None
    for number, (trained, (given, *more)) in enumerate(itertools.product((whole_run, tmp_path / "moved"), rows)):
        done = tool("predict", trained, given, tmp_path / f"{number}.parquet", *more)
        assert done.returncode == 0, done.stderr
        found = pq.read_table(tmp_path / f"{number}.parquet")
        scores = found["probability"].to_numpy()
        assert log_loss(found["label"].to_numpy(), scores.astype(np.float64)) == pytest.approx(wanted, abs=1e-6)
        first = scores if first is None else first
        np.testing.assert_allclose(scores, first, atol=1e-6, rtol=0)
    ids = torch.arange(10_000, 11_000)  # of values that no row has
    for maps in (load_maps(tmp_path / "moved"), read_maps(find(whole_run).config.model, open_source(whole_run))):
        found = maps["C8"].rows_of(ids)
        assert maps.keys() == {"C3", "C8"} and len(maps["C8"].rows.unique()) == len(maps["C8"].ids) == 22
        assert torch.equal(found, torch.where(mixed(ids) < RAW_IDS // 2, 11, 23)) and len(found.unique()) == 2

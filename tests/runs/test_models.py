"""Models with a state besides their weights, stopped and continued: running statistics, and what dropout draws."""

import json
import shutil

import torch

from dlrm_dist.checkpoint.source import open_source
from dlrm_dist.data.options import PrepareOptions
from dlrm_dist.data.prepare import prepare
from dlrm_dist.data.synthetic import write_clicks
from tests.helpers import ROOT, assert_refused, run_command

MODEL = ("--model.name", "paddlerec", "--model.embedding_dim", "8", "--model.bottom_mlp", "16,8")
DROPPING = ("--model.name", "dcn", "--model.cross", "matrix", "--model.deep_mlp", "16,8", "--model.dropout", "0.3")
STEPS = 10


def train(folder, ranks, name, *words):
    launcher = ["torchrun", "--nproc_per_node", str(ranks)] if ranks > 1 else ["python"]
    fixed = ("--data.path", folder / "data", *MODEL, "--train.batch_size", "101", "--runtime.timeout_s", "60")
    here = ("--run.folder", folder / "runs", "--run.name", name, "--optimizer.sparse", "adagrad")
    return run_command(*launcher, "launch/train.py", *fixed, *here, *words, folder=ROOT)


def test_a_run_goes_on_with_other_ranks_and_the_same_statistics(tmp_path):
    write_clicks(tmp_path / "train.tsv", 1003, seed=0)
    options = PrepareOptions("kaggle", split="0.8,0.2,0", ids="hash", hash_rows=500, lanes=12, group_rows=16)
    prepare([tmp_path / "train.tsv"], tmp_path / "data", options)
    assert_refused(train(tmp_path, 1, "wrong"), "model.top_mlp must end with 2")
    words = ("--model.top_mlp", "16,2", "--train.max_steps")
    for ranks, name, steps in ((1, "whole", STEPS), (2, "halves", STEPS // 2), (1, "halves", STEPS)):
        resume = ("--train.resume", "auto") if name == "halves" else ()
        done = train(tmp_path, ranks, name, *words, str(steps), *resume)
        assert done.returncode == 0, done.stderr
    whole, halves = (open_source(tmp_path / "runs" / name) for name in ("whole", "halves"))
    running = [key for key in whole.sizes if ".running_" in key]
    assert len(running) == 2 * (2 + 2) and whole.sizes.keys() == halves.sizes.keys()
    for key in running:
        torch.testing.assert_close(halves.read(key), whole.read(key), rtol=1e-2, atol=1e-3)
    found = [json.loads((tmp_path / "runs" / name / "result.json").read_text()) for name in ("whole", "halves")]
    assert abs(found[0]["log_loss"] - found[1]["log_loss"]) < 1e-3
    moved = train(tmp_path, 1, "moved", *words, "1", "--model.init_from", str(tmp_path / "runs" / "halves"))
    assert moved.returncode == 0, moved.stderr


def test_what_is_dropped_is_the_same_after_a_resume(tmp_path, clicks):
    """The second half of a run, once more from the checkpoint in its middle."""
    words = (*DROPPING, "--model.batch_norm", "true", "--data.path", clicks, "--train.max_steps", str(STEPS))
    done = train(tmp_path, 2, "whole", *words, "--checkpoint.every", str(STEPS // 2))
    assert done.returncode == 0, done.stderr
    shutil.copytree(tmp_path / "runs" / "whole", tmp_path / "runs" / "again")
    shutil.rmtree(tmp_path / "runs" / "again" / "checkpoints" / f"step_{STEPS:09d}")
    done = train(tmp_path, 2, "again", *words, "--train.resume", "auto")
    assert done.returncode == 0, done.stderr
    assert f"continuing after step {STEPS // 2} " in done.stdout
    whole, again = (open_source(tmp_path / "runs" / name) for name in ("whole", "again"))
    assert whole.sizes.keys() == again.sizes.keys()
    assert [key for key in whole.sizes if not torch.equal(whole.read(key), again.read(key))] == []

"""PaddleRec's model, with one table and batch normalisation, stopped on two ranks and continued on one."""

import json

import torch

from dlrm_dist.checkpoint.source import open_source
from dlrm_dist.data.options import PrepareOptions
from dlrm_dist.data.prepare import prepare
from dlrm_dist.data.synthetic import write_clicks
from tests.helpers import ROOT, assert_refused, run_command

MODEL = ("--model.name", "paddlerec", "--model.embedding_dim", "8", "--model.bottom_mlp", "16,8")
STEPS = 10


def train(folder, ranks, name, *words):
    launcher = ["torchrun", "--nproc_per_node", str(ranks)] if ranks > 1 else ["python"]
    fixed = ("--data.path", folder / "data", "--train.batch_size", "101", "--runtime.timeout_s", "60", *MODEL)
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

"""Runs and commands in this process, where PyTorch is loaded already: a subprocess takes seconds to load it."""

import io
import subprocess
from contextlib import redirect_stderr, redirect_stdout

from dlrm_dist import config, train
from dlrm_dist.cli import main

MODEL = ("--model.embedding_dim", "8", "--model.bottom_mlp", "16,8", "--model.top_mlp", "16,1")


def train_here(data, folder, *words):
    """A small run on one rank, at `folder`."""
    where = ("--data.path", data, "--run.folder", folder.parent, "--run.name", folder.name)
    how = ("--train.batch_size", "100", "--train.learning_rate", "0.05", "--runtime.device", "cpu")
    with redirect_stdout(io.StringIO()):
        train.main(config.load([str(word) for word in (*MODEL, *where, *how, *words)]))
    return folder


def tool(*words):
    """`dlrm-dist`."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(word) for word in words])
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())

"""Training on a CUDA device: equal to the CPU, in each way that a GPU has of its own."""

import json

import pytest
import torch

from dlrm_dist.data.options import PrepareOptions
from dlrm_dist.data.prepare import prepare
from dlrm_dist.data.synthetic import write_clicks
from tests.helpers import ROOT, run_command

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

CACHED = '[[table]]\npattern = "*"\nsharding_types = ["table_wise"]\ncompute_kernels = ["fused_uvm_caching"]\n'


@pytest.fixture(scope="module")
def clicks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clicks")
    write_clicks(folder / "train.tsv", 1003, seed=0)
    write_clicks(folder / "valid.tsv", 200, seed=1)
    options = PrepareOptions("kaggle", valid=(folder / "valid.tsv",), lanes=12, group_rows=16)
    prepare([folder / "train.tsv"], folder / "data", options)
    return folder / "data"


def losses(folder, data, *words):
    """Of each step of two epochs, with SGD, whose rounding errors stay as small as they are."""
    always = ["--data.path", data, "--train.batch_size", 100, "--train.log_every", 1, "--run.name", "mine"]
    sgd = ["--optimizer.sparse", "sgd", "--optimizer.dense", "sgd"]
    done = run_command("python", ROOT / "launch" / "train.py", *always, *sgd, *words, folder=folder, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in (folder / "runs" / "mine" / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["split"] == "train"]


@pytest.fixture(scope="module")
def on_cpu(clicks, tmp_path_factory):
    return losses(tmp_path_factory.mktemp("cpu"), clicks, "--runtime.device", "cpu")


@pytest.mark.parametrize(
    ("words", "tolerance"),
    [
        ([], 1e-4),  # fp32, sums in another order, over 22 steps
        (["--train.precision", "tf32"], 2e-2),  # 11 bits of a number
        (["--train.precision", "bf16"], 5e-2),  # 8 bits
        (["--train.profile", "true"], 1e-4),
    ],
)
def test_one_gpu_trains_as_the_cpu_does(on_cpu, clicks, tmp_path, words, tolerance):
    found = losses(tmp_path, clicks, "--runtime.device", "cuda", *words)
    assert len(found) == len(on_cpu) == 22
    assert max(abs(a - b) for a, b in zip(found, on_cpu, strict=True)) < tolerance


def test_tables_in_host_memory_behind_a_cache_train_alike(on_cpu, clicks, tmp_path):
    """By the prefetching pipeline."""
    (tmp_path / "cached.toml").write_text(CACHED)
    words = ["--runtime.device", "cuda", "--sharding.constraints", tmp_path / "cached.toml"]
    found = losses(tmp_path, clicks, *words)
    assert max(abs(a - b) for a, b in zip(found, on_cpu, strict=True)) < 1e-4

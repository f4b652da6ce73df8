"""The benchmarks run, in tiny sizes, and their JSON has what a result needs."""

import json

import pytest

from tests.helpers import ROOT, run_command


def figures(*words, folder, program="python"):
    done = run_command(program, *words, "--json", folder=folder, timeout=220)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    where = found["environment"]
    assert set(where) == {"command", "machine", "versions", "commit"}
    assert {"processor", "cores", "memory_GiB", "instructions", "gpus"} <= set(where["machine"])
    assert {"python", "torch", "torchrec"} <= set(where["versions"])
    return found


@pytest.mark.parametrize(
    ("workload", "ways"), [("kaggle", ("Parquet", "memory")), ("dcnv2", ("plain PyTorch", "Parquet"))]
)
def test_step(workload, ways, tmp_path):
    words = [word for way in ways for word in ("--way", way)]
    found = figures(ROOT / "benchmarks/step.py", "--quick", "--workload", workload, *words, folder=tmp_path)
    assert [row["way"] for row in found["rows"]] == list(ways) == list(found["runs"])
    for row in found["rows"]:
        assert set(row) == {
            "way",
            "median samples/s",
            "least",
            "most",
            f"{ways[0]}'s rate over it",
            "samples per CPU-s of a rank",
            "peak MiB of rank 0",
        }
        assert row["least"] > 0
        assert row["samples per CPU-s of a rank"] > 0
    assert found["rows"][0][f"{ways[0]}'s rate over it"] == 1
    assert {"workload", "ranks", "threads", "precision", "repeats"} <= set(found)
    assert 0 < found["runs"]["Parquet"][0]["input_share"] < 1


PEER = """
import os, time
class TrainPipelineSparseDist:
    def progress(self, batches):
        time.sleep(0.01 if next(batches) >= 1 else 0.3)
def main(words):
    assert os.environ["LOCAL_RANK"] == "0"
    steps = int(words[words.index("--limit_train_batches") + 1])
    pipeline, batches = TrainPipelineSparseDist(), iter(range(steps + 1))
    for _ in range(steps + 1):  # the last is of its evaluation
        pipeline.progress(batches)
"""


def test_step_of_the_peer_leaves_out_its_warm_up(tmp_path):
    main = tmp_path / "torchrec_dlrm/dlrm_main.py"
    main.parent.mkdir()
    main.write_text(PEER)
    words = ("--quick", "--way", "torchrec_dlrm", "--peer-dir", tmp_path)
    found = figures(ROOT / "benchmarks/step.py", *words, folder=tmp_path)
    assert 128 / 0.3 < found["rows"][0]["median samples/s"] <= 128 / 0.01  # 6 steps of 128 samples after the slow one


def test_step_needs_a_clone_for_the_peer(tmp_path):
    done = run_command("python", ROOT / "benchmarks/step.py", "--way", "torchrec_dlrm", folder=tmp_path)
    assert done.returncode == 2
    assert "--peer-dir" in done.stderr.splitlines()[-1]


def test_step_says_what_its_peer_lacks(tmp_path):
    done = run_command(
        "python",
        ROOT / "benchmarks/step.py",
        "--quick",
        *("--way", "torchrec_dlrm", "--peer-dir", tmp_path),
        folder=tmp_path,
    )
    assert done.returncode == 1
    assert done.stderr.rstrip().splitlines()[-1] == f"{tmp_path}/torchrec_dlrm: no dlrm_main.py there"


@pytest.mark.parametrize("ranks", [1, 2])
def test_infer(ranks, tmp_path):
    words = ("--quick", "--batches", "1,64", "--ranks", str(ranks))
    found = figures(ROOT / "benchmarks/infer.py", *words, folder=tmp_path)
    assert [row["batch"] for row in found["rows"]] == [1, 64]
    for row in found["rows"]:
        assert row["calls"] >= 20
        assert 0 < row["p50 ms"] <= row["p99 ms"]
        assert 0 < row["least"] <= row["median scores/s"] <= row["most"]


def test_collectives(tmp_path):
    ranks = ("--standalone", "--nproc_per_node", "2")
    words = (ROOT / "benchmarks/collectives.py", "--quick", "--sizes", "1024,65536", "--repeats", "2")
    found = figures(*ranks, *words, folder=tmp_path, program="torchrun")
    assert (found["backend"], found["ranks"]) == ("gloo", 2)
    names = ["all-reduce", "all-to-all", "reduce-scatter", "all-gather"]
    assert [(row["collective"], row["bytes"]) for row in found["rows"]] == [
        (name, size) for size in (1024, 65536) for name in names
    ]
    for row in found["rows"]:
        assert 0 < row["least us"] <= row["median us"] <= row["most us"]
        assert row["bus GB/s"] == row["GB/s"] * (1 if row["collective"] == "all-reduce" else 0.5)


CONFIG = """
[data]
path = "data"
planted_rows = 1000
[model]
name = "{name}"
embedding_dim = 4
bottom_mlp = [4]
top_mlp = [1]
deep_mlp = [4]
[train]
batch_size = 200
epochs = 1
log_every = 2
[optimizer]
sparse = "sgd"
dense = "sgd"
"""


def test_the_papers_experiment_draws_both_models_over_the_same_samples(tmp_path):
    words = [ROOT / "benchmarks/dlrm_against_dcn.py", "--out", "found"]
    for name in ("dlrm", "dcn"):
        (tmp_path / f"{name}.toml").write_text(CONFIG.format(name=name))
        words += ["--config", f"{name}.toml"]
    done = run_command("python", *words, folder=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    curves = json.loads((tmp_path / "found/curves.json").read_text())
    for name in ("dlrm", "dcn"):
        points = curves[name]
        assert [each["samples"] for each in points["train"]] == [400, 800]
        assert [each["samples"] for each in points["valid"]] == [800]
        assert all(0 < each[key] < 1 for each in points["train"] + points["valid"] for key in ("auc", "accuracy"))
    assert curves["dlrm"] != curves["dcn"]
    assert (tmp_path / "found/curves.png").read_bytes().startswith(b"\x89PNG")

"""Offline tools on checkpoints, and starting from the weights of another run."""

import json
import pickle
import resource
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
import torch

from dlrm_dist.checkpoint import folder
from dlrm_dist.checkpoint.source import open_source
from dlrm_dist.checkpoint.storage import Reader
from dlrm_dist.data.options import PrepareOptions
from dlrm_dist.data.prepare import prepare
from dlrm_dist.data.synthetic import write_clicks
from dlrm_dist.errors import UserError
from tests.helpers import ROOT, assert_refused, numbered_dataset, run_command

MODEL = ("--model.embedding_dim", "8", "--model.bottom_mlp", "16,8", "--model.top_mlp", "16,1")


def train(runs, data, name, *words, ranks=1, folder=ROOT):
    launcher = ["torchrun", "--nproc_per_node", ranks] if ranks > 1 else ["python"]
    fixed = ("--data.path", data, "--train.batch_size", "100", "--runtime.timeout_s", "60", "--run.folder", runs)
    return run_command(
        *map(str, launcher), "launch/train.py", *MODEL, *map(str, fixed), "--run.name", name, *words, folder=folder
    )


def ids_of(data, column):
    values = pq.read_table(data / "vocabulary" / f"{column}.parquet")["value"].to_pylist()
    return {value: row + 1 for row, value in enumerate(values)}


def tool(*words):
    return run_command("dlrm-dist", *words, folder=ROOT)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, clicks):
    folder = tmp_path_factory.mktemp("tools")
    done = train(folder, clicks, "first", "--train.max_steps", "7", "--sharding.types", "row_wise,table_wise", ranks=2)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def plan(runs, clicks):
    out = runs / "four.plan.json"
    words = ("--cluster", "cpu:1x4", "--data.path", clicks, "--sharding.types", "row_wise", *MODEL)
    done = tool("plan", "make", *words, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


def test_inspect(runs):
    done = tool("inspect", runs / "first")
    assert done.returncode == 0, done.stderr
    assert "step             7" in done.stdout and "rows             700" in done.stdout
    found = json.loads(tool("inspect", runs / "first", "--json").stdout)
    assert found["scores"]["rows"] == 200 and found["saved with"]["ranks"] == 2
    sizes = {each["name"]: each["size"] for each in found["tensors"]}
    assert sizes["model.model.bottom_mlp.0.weight"] == [16, 13]
    assert_refused(tool("inspect", ROOT / "tests"), "neither a dataset nor a checkpoint here")


def test_a_resharded_checkpoint_is_equal_and_continues(runs, plan, clicks):
    (newest,) = (runs / "first" / "checkpoints").glob("step_000000007")
    out = runs / "second" / "checkpoints" / "step_000000007"
    done = tool("checkpoint", "reshard", newest, out, "--plan", plan)
    assert done.returncode == 0, done.stderr
    assert tool("checkpoint", "diff", newest, out).returncode == 0
    assert folder.damage_of(out) is None
    assert {path.name.split("_")[2] for path in out.glob("__*.distcp")} == {"0", "1", "2", "3"}
    words = ("--train.resume", "auto", "--sharding.plan", str(plan), "--train.max_steps", "9")
    done = train(runs, clicks, "second", *words, ranks=4)
    assert done.returncode == 0, done.stderr
    assert "continuing after step 7 " in done.stdout
    assert_refused(tool("checkpoint", "reshard", newest, out, "--plan", plan), "is there already")


def test_moments_of_columns_are_refused_by_name(runs, clicks):
    out = runs / "columns.plan.json"
    words = ("--cluster", "cpu:1x2", "--data.path", clicks, "--sharding.types", "column_wise", *MODEL)
    assert tool("plan", "make", *words, "--out", out).returncode == 0
    parts = {each["sharding_type"] for each in json.loads(out.read_text())["modules"]["model.embeddings"].values()}
    assert parts == {"column_wise"}
    done = tool("checkpoint", "reshard", runs / "first", runs / "columns", "--plan", out)
    if done.returncode:  # the tables are narrow: TorchRec may keep each in one part, and then nothing is cut
        assert_refused(done, "row-wise Adagrad keeps a moment for each part of a row that is cut by columns")
        assert not (runs / "columns").exists()


def test_unsharded_weights_are_equal_and_diff_finds_what_is_not(runs):
    done = tool("checkpoint", "unshard", runs / "first", runs / "whole", "--optimizer")
    assert done.returncode == 0, done.stderr
    assert tool("checkpoint", "diff", runs / "first", runs / "whole").returncode == 0
    before, after = open_source(runs / "first"), open_source(runs / "whole")
    assert before.sizes == after.sizes and len(before.sizes) > 50
    assert all(torch.equal(before.read(key), after.read(key)) for key in before.sizes)
    from safetensors.torch import load_file, save_file

    dense = load_file(runs / "whole" / "dense.safetensors")
    dense["model.model.top_mlp.0.bias"][3] += 0.5
    save_file(dense, runs / "whole" / "dense.safetensors")
    done = tool("checkpoint", "diff", runs / "first", runs / "whole")
    assert done.returncode == 1
    assert "model.model.top_mlp.0.bias: values: by at most 0.5, 6.2% of them" in done.stdout
    assert tool("checkpoint", "diff", runs / "first", runs / "whole", "--tolerance", "0.6").returncode == 0


def test_weights_of_another_run_by_category_value(runs, clicks, tmp_path):
    """Other rows, so other vocabularies: rows of values that both know are the old ones, the others are fresh."""
    write_clicks(tmp_path / "more.tsv", 1500, seed=5)
    write_clicks(tmp_path / "valid.tsv", 100, seed=6)
    data = tmp_path / "data"
    prepare([tmp_path / "more.tsv"], data, PrepareOptions("kaggle", valid=(tmp_path / "valid.tsv",), lanes=12))
    (tmp_path / "before").parent.mkdir(exist_ok=True)
    assert tool("checkpoint", "unshard", runs / "first", tmp_path / "before").returncode == 0
    frozen = ("--train.max_steps", "1", "--train.learning_rate", "0.0")
    for name, origin, ranks in (("sharded", runs / "first", 2), ("unsharded", tmp_path / "before", 1)):
        done = train(tmp_path, data, name, "--model.init_from", str(origin), *frozen, ranks=ranks)
        assert done.returncode == 0, done.stderr
        assert "rows by their category's value" in done.stdout
    fresh = train(tmp_path, data, "fresh", *frozen)
    assert fresh.returncode == 0, fresh.stderr
    old, new, plain = (open_source(path) for path in (runs / "first", tmp_path / "sharded", tmp_path / "fresh"))
    for column in (f"C{number}" for number in range(1, 27)):
        before, after = ids_of(clicks, column), ids_of(data, column)
        both = before.keys() & after.keys()
        if both and after.keys() - both and any(before[value] != after[value] for value in both):
            break
    else:
        pytest.fail("no column has old, new and moved values")
    key = f"model.model.embeddings.embedding_bags.t_{column}.weight"
    weights, found, drawn = old.read(key), new.read(key), plain.read(key)
    assert all(torch.equal(found[after[value]], weights[before[value]]) for value in both)
    assert all(torch.equal(found[after[value]], drawn[after[value]]) for value in after.keys() - both)
    assert torch.equal(found[0], weights[0])
    assert (
        tool("checkpoint", "diff", tmp_path / "sharded", tmp_path / "unsharded", "--tolerance", "1e-6").returncode == 0
    )


def test_weights_of_another_model_are_refused(runs, clicks):
    words = ("--model.init_from", str(runs / "first"))
    deeper = (*words, "--model.top_mlp", "16,1,24,1")
    assert_refused(train(runs, clicks, "other", *deeper), "has no model.model.top_mlp.4.bias; its model is another one")
    larger = (*words, "--model.name", "dlrm_dcnv2")
    assert_refused(train(runs, clicks, "other2", *larger), "its model is another one")


def test_a_checkpoint_cannot_run_code(runs, tmp_path):
    class Evil:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    (tmp_path / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match=r"names builtins\.exec, which has no place in a checkpoint"):
        Reader(tmp_path).read_metadata()
    assert not (tmp_path / "ran").exists()


def test_formats(runs, tmp_path):
    facts = json.loads((runs / "first" / "checkpoints" / "step_000000007" / folder.FACTS).read_text())
    old = {key: facts[key] for key in ("step", "same", "announced", "sha256")}
    (tmp_path / folder.FACTS).write_text(json.dumps({"format": 1, **old}))
    assert folder.read_facts(tmp_path).progress.reported_step == 7
    sums = {key: value for key, value in facts["progress"].items() if key != "standing"}
    (tmp_path / folder.FACTS).write_text(json.dumps({**facts, "format": 2, "progress": sums}))
    assert folder.read_facts(tmp_path).progress.standing.best is None
    (tmp_path / folder.FACTS).write_text(json.dumps({**facts, "format": 99}))
    with pytest.raises(UserError, match="is of format 99, this program reads up to 3"):
        folder.read_facts(tmp_path)


def test_a_full_disk_ends_the_run_and_leaves_the_checkpoint_before(runs, clicks):
    """A limit on the size of files stands for the disk: writing ends in the same error, without root."""
    name = "full"
    assert train(runs, clicks, name, "--train.max_steps", "5").returncode == 0
    words = ("--data.path", clicks, "--train.batch_size", "100", "--run.folder", runs, "--run.name", name)
    done = subprocess.run(
        [sys.executable, "launch/train.py", *MODEL, *map(str, words), "--train.resume", "auto"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)),
    )
    assert done.returncode == 1
    assert "the checkpoint cannot be written: " in done.stderr and "File too large" in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path.name for path in folder.complete_ones(runs / name / "checkpoints")] == ["step_000000005"]
    assert train(runs, clicks, name, "--train.resume", "auto").returncode == 0


@pytest.mark.parametrize("ranks", [1, 3])
def test_ranks_without_rows(ranks, tmp_path):
    """Four rows in batches of three: the last batch has one row, and two ranks have none; every row is scored once."""
    numbered_dataset(tmp_path / "data", {"train": 4, "valid": 5})
    words = ("--train.batch_size", "3", "--eval.batch_size", "3", "--train.epochs", "3", "--train.log_every", "1")
    done = train(tmp_path, tmp_path / "data", "odd", *words, ranks=ranks)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "odd" / "result.json").read_text())
    assert (result["rows"], result["samples"], result["steps"]) == (5, 12, 6)

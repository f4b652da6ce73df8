"""A trained run scored elsewhere: predict, export and the Predictor against the trained model."""

import errno
import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_dist import Predictor, shard
from dlrm_dist.checkpoint.saved_run import find
from dlrm_dist.checkpoint.source import open_source
from dlrm_dist.data.kaggle import CATEGORIES, DENSE
from dlrm_dist.data.schema import read_info
from dlrm_dist.data.synthetic import write_clicks
from dlrm_dist.errors import UserError
from dlrm_dist.models.build import build_model
from dlrm_dist.serving import check, program
from dlrm_dist.serving.export import export
from tests.helpers import ROOT, assert_refused, numbered_dataset, run_command
from tests.runs.serving import tool, train_here


def valid_rows(data):
    return pa.concat_tables([pq.read_table(data / each) for each in read_info(data).splits["valid"].parts])


@pytest.fixture(scope="module")
def run(tmp_path_factory, clicks):
    """On one rank; test_managed.py serves a sharded one."""
    return train_here(clicks, tmp_path_factory.mktemp("serving") / "r")


@pytest.fixture(scope="module")
def trained(run, clicks):
    """Probabilities of the validation rows in file order, by plain PyTorch: weights read whole from the checkpoint."""
    saved, source = find(run), open_source(run)
    info = saved.info
    features = [(each.name, each.rows) for each in info.categories]
    model = build_model(saved.config.model, len(info.dense), features, 0, torch.device("cpu"))
    for name, value in model.state_dict().items():
        parent, _, key = name.rpartition(".")
        if value.is_meta:
            setattr(model.get_submodule(parent), key, torch.nn.Parameter(source.read(f"model.model.{name}")))
        else:
            value.copy_(source.read(f"model.model.{name}"))
    rows = valid_rows(clicks)
    dense = torch.tensor([rows[name].to_pylist() for name in DENSE]).T
    ids = torch.tensor([rows[name].to_pylist() for name in CATEGORIES]).flatten()
    lengths = torch.ones(len(ids), dtype=torch.int32)
    with torch.no_grad():
        sparse = KeyedJaggedTensor(keys=list(CATEGORIES), values=ids, lengths=lengths)
        return model(dense, sparse).sigmoid().numpy()


@pytest.fixture(scope="module")
def exported(run, clicks, tmp_path_factory):
    out = tmp_path_factory.mktemp("exports") / "fp32"
    done = tool("export", run, out, "--embeddings", "fp32")
    assert done.returncode == 0 and not done.stderr and "within" in done.stdout, done.stderr
    return out


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """The raw rows that the validation split was made from, without labels too."""
    folder = tmp_path_factory.mktemp("raw")
    write_clicks(folder / "valid.tsv", 200, seed=1)
    lines = (folder / "valid.tsv").read_text().splitlines(keepends=True)
    (folder / "test.txt").write_text("".join(line.partition("\t")[2] for line in lines))
    return folder


def test_predictions_are_the_trained_models(run, clicks, raw, exported, tmp_path):
    words = ("--keep", "label,C1")
    done = tool("predict", run, clicks, tmp_path / "prepared.parquet", "--split", "valid", *words)
    assert done.returncode == 0 and not done.stderr, done.stderr
    prepared = pq.read_table(tmp_path / "prepared.parquet")
    rows = valid_rows(clicks)
    assert prepared.column_names == ["label", "C1", "probability"]
    assert prepared["label"].equals(rows["label"]) and prepared["C1"].equals(rows["C1"])
    for source, name in ((run, "valid.tsv"), (exported, "test.txt")):
        out = tmp_path / f"{name}.parquet"
        keep = ("--keep", "C1,I2") if source == run else ()
        done = tool("predict", source, raw / name, out, "--format", "kaggle", *keep)
        assert done.returncode == 0, done.stderr
        found = pq.read_table(out)["probability"].to_numpy()
        np.testing.assert_allclose(found, prepared["probability"].to_numpy(), atol=1e-6, rtol=0)
    fields = [line.split("\t") for line in (raw / "valid.tsv").read_text().splitlines()]
    kept = pq.read_table(tmp_path / "valid.tsv.parquet")
    assert kept["C1"].to_pylist() == [row[14] or None for row in fields]
    assert kept["I2"].to_pylist() == [int(row[2]) if row[2] else None for row in fields]


def test_the_predictor_scores_raw_rows_as_the_trained_model_does(run, clicks, raw, exported, trained):
    fields = [line.split("\t") for line in (raw / "test.txt").read_text().splitlines()]
    rows = [dict(zip((*DENSE, *CATEGORIES), (each or None for each in row), strict=True)) for row in fields]
    rows = [row | {name: row[name] and int(row[name]) for name in DENSE} for row in rows]
    predictor = Predictor(exported)
    found = predictor.predict(rows)
    assert np.ptp(found) > 0.2  # else all is alike, and equal whatever is scored
    table = pa.Table.from_pylist(rows)
    np.testing.assert_array_equal(predictor.predict(table), found)
    np.testing.assert_allclose(predictor.predict(rows[3]), found[3:4], atol=1e-6)
    np.testing.assert_allclose(predictor.predict(valid_rows(clicks), prepared=True), found, atol=1e-6, rtol=0)
    np.testing.assert_allclose(found, trained, atol=1e-6, rtol=0)
    assert predictor.predict([]).shape == (0,)
    for bad, said in (({"C99": 1}, "no column is called 'C99'"), ({"C1": "xyz"}, "column C1"), ({"I1": "?"}, "I1")):
        with pytest.raises(UserError, match=said):
            predictor.predict(bad)
    with pytest.raises(UserError, match="lack column I2"):
        predictor.predict(table.drop_columns("I2"))


def test_an_export_scores_in_a_process_and_a_folder_of_its_own(exported, tmp_path):
    """Its own example, as its card says."""
    shutil.copytree(exported, tmp_path / "moved")
    card = (tmp_path / "moved" / "README.md").read_text()
    code = card.partition("```python\n")[2].partition("```")[0].replace("dlrm_dist.Pred", "found = dlrm_dist.Pred")
    more = "import torch\nalone = not torch.distributed.is_initialized()\n"
    more += "print(json.dumps([found.tolist(), request['probabilities'], alone]))"
    done = run_command("python", "-c", code + more, folder=tmp_path / "moved", PYTHONPATH=str(ROOT))
    assert done.returncode == 0 and not done.stderr, done.stderr
    found, wanted, alone = json.loads(done.stdout)
    assert alone and len(found) == 3
    np.testing.assert_allclose(found, wanted, atol=1e-6, rtol=0)


def test_a_quantised_export_is_smaller_and_says_how_far_it_is(run, exported, tmp_path):
    saved = find(run)
    bundle = export(saved, saved.config.data.path, "valid", tmp_path / "int8", "int8", "pt2")
    assert 0 < bundle.check.difference < bundle.check.tolerance and bundle.check.rows == 200
    assert (tmp_path / "int8" / "model.pt2").stat().st_size < (exported / "model.pt2").stat().st_size
    card = (exported / "README.md").read_text()
    assert "# r, step" in card and "200 rows" in card and "torch 2." in card
    request = json.loads((exported / "example.json").read_text())
    assert len(request["rows"]) == 3 and len(set(request["probabilities"])) == 3


def test_an_export_that_differs_is_not_made(run, tmp_path, monkeypatch):
    monkeypatch.setitem(check.TOLERANCES, "int4", (1e-6, 1e-6))
    saved = find(run)
    with pytest.raises(check.DiffersError, match="not made: over 200 rows"):
        export(saved, saved.config.data.path, "valid", tmp_path / "x", "int4", "pt2")
    assert list(tmp_path.iterdir()) == []


def test_evaluation_draws_no_tables(run, clicks, monkeypatch):
    monkeypatch.setattr(shard, "_fill", lambda *_: pytest.fail("initial weights are drawn"))
    done = tool("evaluate", run, clicks, "--json")
    assert done.returncode == 0, done.stderr
    wanted = json.loads((run / "result.json").read_text())["log_loss"]
    assert json.loads(done.stdout)["scores"][0]["log_loss"] == pytest.approx(wanted, abs=1e-9)


def test_bf16_training_changes_no_auc(clicks, tmp_path):
    """An export multiplies in fp32; the trained model, scored as it was trained, in bf16."""
    run = train_here(clicks, tmp_path / "r", "--train.precision", "bf16")
    done = tool("export", run, tmp_path / "out", "--embeddings", "int8", "--split", "train")
    assert done.returncode == 0, done.stderr
    scores = tool("evaluate", run, clicks, "--split", "train", "--metrics.exact", "true", "--json")
    after = json.loads((tmp_path / "out" / "export.json").read_text())["check"]
    assert after["rows"] == 1003 and after["auc"] > 0.7
    assert after["auc"] == pytest.approx(json.loads(scores.stdout)["scores"][0]["auc"], abs=5e-4)


def test_mistakes_are_one_line_and_leave_nothing(run, clicks, raw, exported, tmp_path):
    numbered_dataset(tmp_path / "other", {"train": 50, "valid": 50})
    (tmp_path / "empty.tsv").write_text("")
    (tmp_path / "there.parquet").write_text("mine")
    mangled, foreign, out = tmp_path / "mangled", tmp_path / "foreign", tmp_path / "out.parquet"
    shutil.copytree(exported, mangled)
    with (mangled / "model.pt2").open("r+b") as file:
        file.seek(1000)
        file.write(b"x" * 100)
    torn = tmp_path / "torn"
    shutil.copytree(clicks, torn)
    part = next((torn / "valid").iterdir())
    whole = part.read_bytes()
    part.write_bytes(whole[:4] + bytes(64) + whole[68:])
    foreign.mkdir()
    (foreign / "export.json").write_text('{"made": "elsewhere"}')
    before = sorted(tmp_path.iterdir())
    kaggle = ("--format", "kaggle")
    for words, said in (
        (("predict", run, tmp_path / "other", out), "has other dense columns than the run"),
        (("predict", run, tmp_path / "empty.tsv", out, *kaggle), "is empty"),
        (("predict", run, clicks, tmp_path / "there.parquet"), "is there already"),
        (("predict", run, clicks, out, "--keep", "C99"), "C99: no such column"),
        (("predict", run, clicks, out, "--split", "test"), "has no split 'test'"),
        (("predict", run, raw / "valid.tsv", out, "--format", "slot"), "was trained on rows in format kaggle"),
        (("predict", mangled, raw / "valid.tsv", out, *kaggle), "file model.pt2 is damaged"),
        (("predict", foreign, raw / "valid.tsv", out, *kaggle), "export.json: says no format"),
        (("predict", run, torn, out), "cannot be read"),
        (("export", run, mangled, "--embeddings", "fp32"), "is there already"),
        (("export", run, tmp_path / "x", "--embeddings", "fp32", "--data", torn), "cannot be read"),
        (("export", run, run, "--embeddings", "fp32"), "is there already"),
        (("export", run, tmp_path / "x", "--embeddings", "fp32", "--data", tmp_path / "other"), "other dense columns"),
    ):
        assert_refused(tool(*words), said)
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "there.parquet").read_text() == "mine"


def test_a_mangled_export_is_named(exported, tmp_path):
    """Each file of it: changed, cut off, gone."""
    folder = tmp_path / "mangled"
    shutil.copytree(exported, folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {str(path.relative_to(folder)) for path in files}
    assert {"export.json", "model.pt2", "example.json", "README.md", "vocabulary/C1.parquet"} <= names
    assert not names & {"config.toml", "dataset.json"}  # whose keys change; see export.json's signature
    for path in files:
        whole = path.read_bytes()
        middle = len(whole) // 2
        changed = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        for harmed in (changed, whole[:middle], b"", None):
            path.unlink() if harmed is None else path.write_bytes(harmed)
            with pytest.raises(UserError, match=path.name) as caught:
                Predictor(folder)
            assert "export" in str(caught.value) and "\n" not in str(caught.value)
            path.write_bytes(whole)
    Predictor(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"format": 2}', "is of format 2, this program reads up to 1; use the version"),
        ('{"made": "elsewhere"}', "says no format"),
        ("[1]", "says no format"),
        ('{"format": 1}', "is damaged"),
    ],
)
def test_records_of_others_are_refused(tmp_path, text, said):
    (tmp_path / "export.json").write_text(text)
    with pytest.raises(UserError, match=said):
        Predictor(tmp_path)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_what_is_cut_off_leaves_nothing(run, clicks, tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(pq.ParquetWriter, "write_table", fail)
    monkeypatch.setattr(program, "write", fail)
    for words in (("predict", run, clicks, tmp_path / "out"), ("export", run, tmp_path / "x", "--embeddings", "int8")):
        done = tool(*words)
        if isinstance(error, OSError):
            assert_refused(done, "cannot be written: No space left on device")
        else:
            assert (done.returncode, done.stderr) == (130, "interrupted; nothing was left behind\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif("DLRM_DIST_LONG" not in os.environ, reason="compiling takes minutes: set DLRM_DIST_LONG=1")
def test_a_compiled_program_scores_alike(run, clicks, exported, tmp_path):
    """In a process of its own, as it compiles for long."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no C++ compiler here")
    words = ("export", run, tmp_path / "aoti", "--embeddings", "int8", "--format", "aoti")
    cache = str(tmp_path / "cache")
    done = run_command("dlrm-dist", *words, folder=ROOT, timeout=220, TORCHINDUCTOR_CACHE_DIR=cache)
    assert done.returncode == 0, done.stderr
    rows = valid_rows(clicks)
    found, wanted = (Predictor(each).predict(rows, prepared=True) for each in (tmp_path / "aoti", exported))
    np.testing.assert_allclose(found, wanted, atol=0.02, rtol=0)
    assert np.abs(found - wanted).max() > 0


def test_without_a_compiler_compilation_says_what_it_wants(run, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    saved = find(run)
    with pytest.raises(UserError, match=r"g\+\+.*--format pt2 needs none"):
        export(saved, saved.config.data.path, "valid", tmp_path / "x", "int8", "aoti")
    assert list(tmp_path.iterdir()) == []
    export(saved, saved.config.data.path, "valid", tmp_path / "x", "int8", "pt2")
    assert Predictor(tmp_path / "x").predict({}).shape == (1,)

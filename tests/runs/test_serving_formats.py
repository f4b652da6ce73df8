"""Raw rows of each format, scored by the run that was trained on them and by its export, as its prepared rows are."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import log_loss

from dlrm_dist.data.prepare import prepare
from dlrm_dist.data.schema import read_info
from dlrm_dist.data.synthetic import write_clicks
from tests.runs.serving import tool, train_here
from tests.unit.format_cases import SCHEMA, foreign, options

ROWS = {"train": 120, "valid": 40}
EXPANDED = ",".join("2" if place in (0, 4) else "1" for place in range(26))


def terabyte(folder, name, rows):
    write_clicks(folder / f"{name}.tsv", rows, seed=len(name))
    return folder / f"{name}.tsv"


def slot(folder, name, rows):
    draw = np.random.default_rng(rows)
    lines = []
    for _ in range(rows):
        dense = [f"dense_feature:{value:.3f}" for value in draw.random(13)]
        ids = [f"{place}:{draw.integers(1, 90)}" for place in range(1, 27) if draw.random() < 0.9]
        lines.append(" ".join([f"click:{draw.integers(2)}", *dense, *ids]))
    (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder / f"{name}.txt"


def npy(folder, name, rows):
    draw = np.random.default_rng(rows)
    (folder / name).mkdir()
    np.save(folder / name / "x_dense.npy", draw.random((rows, 13), np.float32))
    np.save(folder / name / "x_sparse.npy", draw.integers(0, 50, (rows, 26)).astype(np.int32))
    np.save(folder / name / "x_labels.npy", draw.integers(0, 2, (rows, 1)).astype(np.int32))
    return folder / name


def parquet(folder, name, rows):
    pq.write_table(foreign(rows, start=rows), folder / f"{name}.parquet")
    (folder / "schema.toml").write_text(SCHEMA)
    return folder / f"{name}.parquet"


CASES = {
    "terabyte": (terabyte, {"ids": "hash", "hash_rows": 97}, ("--data.expand_multi_hot", EXPANDED)),
    "slot": (slot, {}, ("--model.shared_tables", "all", "--optimizer.sparse", "sgd")),
    "npy": (npy, {"ids": "keep"}, ()),
    "parquet": (parquet, {"schema": "schema.toml"}, ()),
}


@pytest.mark.parametrize("form", CASES)
def test_raw_rows_score_as_prepared_ones(form, tmp_path):
    write, how, words = CASES[form]
    made = {name: write(tmp_path, name, rows) for name, rows in ROWS.items()}
    how = {key: tmp_path / value if key == "schema" else value for key, value in how.items()}
    prepare([made["train"]], tmp_path / "data", options(form, valid=(made["valid"],), **how))
    run = train_here(tmp_path / "data", tmp_path / "r", "--train.epochs", "4", *words)
    done = tool("export", run, tmp_path / "out", "--embeddings", "fp32")
    assert done.returncode == 0, done.stderr
    for trained, name in ((run, "run"), (tmp_path / "out", "export")):
        for given, more in ((tmp_path / "data", ()), (made["valid"], ("--format", form))):
            out = tmp_path / f"{name}-{len(more)}.parquet"
            done = tool("predict", trained, given, out, *more)
            assert done.returncode == 0, done.stderr
    found = [pq.read_table(path)["probability"].to_numpy() for path in sorted(tmp_path.glob("*-?.parquet"))]
    assert len(found) == 4 and np.ptp(found[0]) > 0.01
    for each in found[1:]:
        np.testing.assert_allclose(each, found[0], atol=1e-6, rtol=0)
    parts = read_info(tmp_path / "data").splits["valid"].parts
    rows = pa.concat_tables([pq.read_table(tmp_path / "data" / part) for part in parts])
    weights = rows["w"].to_numpy() if "w" in rows.column_names else None
    loss = log_loss(rows["label"].to_numpy(), found[0].astype(np.float64), sample_weight=weights)
    assert loss == pytest.approx(json.loads((run / "result.json").read_text())["log_loss"], abs=1e-6)

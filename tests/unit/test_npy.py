"""TorchRec's npy triples."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from dlrm_dist.data import prepare as module
from dlrm_dist.data.prepare import prepare
from dlrm_dist.errors import UserError
from tests.unit.format_cases import options, read


def write_triple(folder, name, rows, seed=0, dtype=np.int32):
    rng = np.random.default_rng(seed)
    arrays = {
        "dense": rng.random((rows, 13), np.float32),
        "sparse": rng.integers(0, 50, (rows, 26)).astype(dtype),
        "labels": rng.integers(0, 2, (rows, 1)).astype(np.int32),
    }
    folder.mkdir(exist_ok=True)
    for kind, values in arrays.items():
        np.save(folder / f"{name}_{kind}.npy", values)
    return arrays


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("ids", ["keep", "hash"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_npy_triples(tmp_path, monkeypatch, ids, shuffle, dtype):
    monkeypatch.setattr(module, "SEGMENT_ROWS", 50)
    days = [write_triple(tmp_path / "npy", f"day_{day}", 70, day, dtype) for day in range(3)]
    how = options("npy", ids=ids, hash_rows=7, split="day", shuffle=shuffle)
    info = prepare([tmp_path / "npy"], tmp_path / "out", how)
    assert {name: split.rows for name, split in info.splits.items()} == {"train": 140, "valid": 35, "test": 35}
    whole = {kind: np.concatenate([day[kind] for day in days]) for kind in days[0]}
    sparse = whole["sparse"] % 7 if ids == "hash" else whole["sparse"]
    for split, rows in (("train", slice(0, 140)), ("valid", slice(140, 175)), ("test", slice(175, 210))):
        table = read(tmp_path / "out", split)
        found = np.stack([column.to_numpy() for column in table.columns], axis=1)
        expected = np.hstack([whole["labels"], whole["dense"], sparse])[rows]
        if split == "train" and shuffle:
            assert not np.array_equal(found, expected)
            found, expected = found[np.argsort(found[:, 1])], expected[np.argsort(expected[:, 1])]
        assert np.array_equal(found, expected)
    assert [each.rows for each in info.categories] == (
        [7] * 26 if ids == "hash" else (whole["sparse"].max(axis=0) + 1).tolist()
    )
    assert info.transform["dense"] == "none"


def test_large_values_of_npy_triples_are_the_hexadecimal_numbers_they_came_from(tmp_path):
    arrays = write_triple(tmp_path, "x", 4)
    arrays["sparse"][:, 0] = np.array([0xDEADBEEF, 1, 0xFFFFFFFF, 2], np.uint32).view(np.int32)
    np.save(tmp_path / "x_sparse.npy", arrays["sparse"])
    prepare([tmp_path], tmp_path / "out", options("npy", ids="hash", hash_rows=1_000_003))
    expected = [value % 1_000_003 for value in (0xDEADBEEF, 1, 0xFFFFFFFF, 2)]
    assert read(tmp_path / "out")["C1"].to_pylist() == expected


def spoil(kind, change):
    def harm(folder):
        arrays = np.load(folder / f"x_{kind}.npy")
        np.save(folder / f"x_{kind}.npy", change(arrays))

    return harm


def cut_short(folder):
    (folder / "x_dense.npy").write_bytes((folder / "x_dense.npy").read_bytes()[:-4])


def put(row, column, value):
    def change(array):
        array[row, column] = value
        return array

    return change


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "x_labels.npy").unlink(), "x_labels.npy: no such file; allowed: a triple"),
        (lambda folder: (folder / "notes").write_text("x"), "notes: belongs to no triple"),
        (lambda folder: (folder / "x_dense.npy").write_text("x"), "x_dense.npy: cannot be read"),
        (cut_short, "x_dense.npy: is shorter than it says"),
        (spoil("dense", lambda array: array[1:]), "x_sparse.npy: dense, sparse and labels have 19, 20 and 20 rows"),
        (spoil("dense", np.asfortranarray), "in Fortran order; allowed: "),
        (spoil("sparse", lambda array: array.astype(float)), "x_sparse.npy: has float64; allowed: int32"),
        (spoil("labels", put(4, 0, -1)), "x_sparse.npy: row 5: column label: -1 is not possible; allowed: 0 or 1"),
        (spoil("dense", put(7, 2, np.nan)), "x_sparse.npy: row 8: column I3: nan is not possible; allowed: finite"),
        (spoil("sparse", put(9, 25, -3)), "x_sparse.npy: row 10: column C26: -3 is not possible; allowed: ids from"),
    ],
)
def test_bad_npy_triples_are_named(tmp_path, harm, message):
    write_triple(tmp_path / "npy", "x", 20)
    harm(tmp_path / "npy")
    with pytest.raises(UserError) as caught:
        prepare([tmp_path / "npy"], tmp_path / "out", options("npy", ids="keep"))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"npy"}


def test_what_overflows_float32_in_npy_triples_is_a_bad_value(tmp_path):
    arrays = write_triple(tmp_path / "npy", "x", 4)
    dense = arrays["dense"].astype(np.float64)
    dense[2, 1] = 1e300
    np.save(tmp_path / "npy" / "x_dense.npy", dense)
    with pytest.raises(UserError, match=r"row 3: column I2: 1e\+300 is not possible; allowed: finite"):
        prepare([tmp_path / "npy"], tmp_path / "out", options("npy", ids="keep"))
    info = prepare([tmp_path / "npy"], tmp_path / "out", options("npy", ids="keep", on_bad_row="skip"))
    assert info.bad_rows == {"I2": 1} and info.splits["train"].rows == 3


@pytest.mark.parametrize("ids", ["keep", "hash", "vocabulary"])
def test_npy_triples_of_another_byte_order_are_the_same(tmp_path, ids):
    for name, order in (("a", "<"), ("b", ">")):
        arrays = write_triple(tmp_path / name, "x", 20)
        for kind, values in arrays.items():
            np.save(tmp_path / name / f"x_{kind}.npy", values.astype(values.dtype.newbyteorder(order)))
        prepare([tmp_path / name], tmp_path / f"out_{name}", options("npy", ids=ids, hash_rows=7))
    assert read(tmp_path / "out_a").to_pydict() == read(tmp_path / "out_b").to_pydict()


def test_npy_triples_of_both_widths_share_a_vocabulary(tmp_path):
    sparse = np.array([[0xDEADBEEF], [7]] * 2, np.uint32).view(np.int32)
    for name, values in (("a", sparse), ("b", sparse.view(np.uint32).astype(np.int64))):
        write_triple(tmp_path / "npy", name, 4)
        np.save(tmp_path / "npy" / f"{name}_sparse.npy", values)
    info = prepare([tmp_path / "npy"], tmp_path / "out", options("npy"))
    assert info.categories[0].rows == 3
    assert read(tmp_path / "out")["C1"].to_pylist() == [2, 1] * 4
    assert pq.read_table(tmp_path / "out/vocabulary/C1.parquet").to_pydict() == {
        "value": [7, 0xDEADBEEF],
        "count": [4, 4],
    }

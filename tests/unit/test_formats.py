"""Rows from anywhere: npy triples, Parquet of other origin, globs, S3."""

import dataclasses
import gzip
import math
from collections import Counter

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_dist.data import files
from dlrm_dist.data import prepare as module
from dlrm_dist.data import text as text_module
from dlrm_dist.data.contents import contents
from dlrm_dist.data.files import find
from dlrm_dist.data.footers import check_split
from dlrm_dist.data.loader import SplitReader
from dlrm_dist.data.options import PrepareOptions
from dlrm_dist.data.prepare import prepare
from dlrm_dist.data.schema import read_info
from dlrm_dist.errors import UserError

LANES, GROUP_ROWS = 4, 8


def options(form, **changes):
    return dataclasses.replace(PrepareOptions(form, shuffle=False, lanes=LANES, group_rows=GROUP_ROWS), **changes)


def read(folder, split="train"):
    return pa.concat_tables([pq.read_table(folder / part) for part in read_info(folder).splits[split].parts])


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


SCHEMA = """
label = "clicked"
dense = ["age", "price"]
weight = "w"
[categories]
user = {}
shop = { column = "shop_id", ids = "hash", rows = 5 }
tags = { min_count = 1 }
place = { ids = "keep", rows = 4 }
"""


def foreign(rows, start=0):
    number = range(start, start + rows)
    return pa.table(
        {
            "unused": pa.array(["x"] * rows),
            "clicked": pa.array([n % 3 == 0 for n in number]),
            "age": pa.array([None if n % 7 == 0 else n for n in number], pa.int16()),
            "price": pa.array([n / 8 for n in number], pa.float64()),
            "w": pa.array([1 + n % 2 for n in number], pa.float32()),
            "user": pa.array([None if n % 11 == 0 else f"user {n % 5}" for n in number]),
            "shop_id": pa.array([(1 << 60) + n for n in number], pa.int64()),
            "tags": pa.array([None if n % 5 == 0 else [f"t{n % 4}"] * (n % 3) for n in number], pa.list_(pa.string())),
            "place": pa.array([n % 4 for n in number], pa.uint8()),
        }
    )


@pytest.mark.parametrize("shuffle", [False, True])
def test_parquet_of_other_origin(tmp_path, monkeypatch, shuffle):
    monkeypatch.setattr(module, "SEGMENT_ROWS", 40)
    monkeypatch.setattr(module, "BUCKET_ROWS", 30)
    (tmp_path / "schema.toml").write_text(SCHEMA)
    pq.write_table(foreign(70), tmp_path / "a.parquet", row_group_size=30)
    pq.write_table(foreign(50, 70), tmp_path / "b.parquet")
    sources = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    how = options("parquet", schema=tmp_path / "schema.toml", dense="none", split="0.5,0.25,0.25", shuffle=shuffle)
    info = prepare(sources, tmp_path / "out", how)
    assert (info.dense, info.weight) == (("age", "price"), "w")
    assert [(each.name, each.multi_hot) for each in info.categories] == [
        ("user", False),
        ("shop", False),
        ("tags", True),
        ("place", False),
    ]
    assert [each.rows for each in info.categories] == [7, 5, 5, 4]
    rows = [row for split in ("train", "valid", "test") for row in read(tmp_path / "out", split).to_pylist()]
    assert sorted(round(row["price"] * 8) for row in rows) == list(range(120))
    kept = {"user": {}, "tags": {}}
    for row in rows:
        n = round(row["price"] * 8)
        tags = [] if n % 5 == 0 else [f"t{n % 4}"] * (n % 3)
        assert (row["label"], row["age"], row["w"]) == (n % 3 == 0, 0 if n % 7 == 0 else n, 1 + n % 2)
        assert (row["shop"], row["place"], len(row["tags"])) == (((1 << 60) + n) % 5, n % 4, len(tags))
        for name, raw, found in (
            ("user", [None if n % 11 == 0 else n % 5], [row["user"]]),
            ("tags", tags, row["tags"]),
        ):
            for value, id_ in zip(raw, found, strict=True):
                assert kept[name].setdefault(value, id_) == id_ > 0
    assert {name: sorted(ids.values()) for name, ids in kept.items()} == {
        "user": [1, 2, 3, 4, 5, 6],
        "tags": [1, 2, 3, 4],
    }
    in_order = [round(row["price"] * 8) for row in read(tmp_path / "out").to_pylist()]
    assert (in_order == list(range(60))) is not shuffle


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clicked": [None] + [True] * 8}, "a.parquet: row 1: column label: None is not possible; allowed: 0 or 1"),
        ({"price": [0.5] * 3 + [math.inf] + [0.5] * 5}, "row 4: column price: inf is not possible; allowed: finite"),
        ({"w": [1.0, -1.0] + [1.0] * 7}, "row 2: column w: -1.0 is not possible; allowed: finite numbers from 0 on"),
        ({"place": [0] * 8 + [4]}, "row 9: column place: 4 is not possible; allowed: ids 0 to 3"),
        ({"place": [0, -1] + [0] * 7}, "row 2: column place: -1 is not possible"),
        ({"price": ["a"] * 9}, "a.parquet: column price has string; allowed: numbers"),
        ({"user": [0.5] * 9}, "a.parquet: column user has double; allowed: integers, strings"),
        ({"shop_id": None}, "a.parquet: column shop_id is missing; allowed: integers"),
    ],
)
@pytest.mark.parametrize("on_bad_row", ["error", "skip", "null"])
def test_bad_parquet_is_named_or_left_out(tmp_path, change, message, on_bad_row):
    (tmp_path / "schema.toml").write_text(SCHEMA)
    table = foreign(9).to_pydict()
    for name, values in change.items():
        table.pop(name) if values is None else table.update({name: values})
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    how = options("parquet", schema=tmp_path / "schema.toml", ids="hash", on_bad_row=on_bad_row)
    if on_bad_row == "error" or "row" not in message:
        with pytest.raises(UserError) as caught:
            prepare([tmp_path / "a.parquet"], tmp_path / "out", how)
        assert on_bad_row != "error" or message in str(caught.value)
        assert "\n" not in str(caught.value)
        assert {path.name for path in tmp_path.iterdir()} == {"schema.toml", "a.parquet"}
    else:
        info = prepare([tmp_path / "a.parquet"], tmp_path / "out", how)
        (name,) = change
        assert info.bad_rows == {"label" if name == "clicked" else name: 1} and info.num_bad_rows == 1
        assert info.splits["train"].rows == (9 if (name, on_bad_row) == ("price", "null") else 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label = ", "schema.toml: cannot be read as a schema"),
        ('label = "clicked"', "schema.toml: categories"),
        (SCHEMA.replace("ids =", "id ="), "schema.toml: "),
        (SCHEMA.replace('"age", "price"', '"age", "age"'), "schema.toml: column age is named twice"),
        (SCHEMA.replace(", rows = 4", ""), "category place: kept ids need the rows"),
        (SCHEMA + '"../x" = {}', "schema.toml: column '../x' cannot have this name in a dataset; allowed: "),
        (SCHEMA + '"a/b" = {}', "schema.toml: column 'a/b' cannot have this name"),
        (SCHEMA + '"" = {}', "schema.toml: column '' cannot have this name"),
        (SCHEMA + f'"{"n" * 101}" = {{}}', "schema.toml: column 'nnnn"),
        (SCHEMA.replace('"price"', '".price"'), "schema.toml: column '.price' cannot have this name"),
        (SCHEMA.replace('"w"', '""'), "schema.toml: column '' cannot have this name"),
    ],
)
def test_a_bad_schema_file_is_named(tmp_path, text, message):
    (tmp_path / "schema.toml").write_text(text)
    pq.write_table(foreign(9), tmp_path / "a.parquet")
    with pytest.raises(UserError) as caught:
        prepare([tmp_path / "a.parquet"], tmp_path / "out", options("parquet", schema=tmp_path / "schema.toml"))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("dense", ["none", "log1p", "log3"])
def test_what_overflows_float32_in_parquet_is_a_bad_value(tmp_path, dense):
    (tmp_path / "schema.toml").write_text(SCHEMA)
    prices, weights = [0.5, -1e300, 1e300, 3.4e38], [1.0, 1.0, 1.0, 1e39]
    table = foreign(4).set_column(3, "price", pa.array(prices)).set_column(4, "w", pa.array(weights))
    pq.write_table(table, tmp_path / "a.parquet")
    how = options("parquet", schema=tmp_path / "schema.toml", ids="hash", dense=dense)
    message = "row 2: column price: -1e\\+300" if dense == "none" else r"row 4: column w: 1e\+39 is not possible"
    with pytest.raises(UserError, match=message):
        prepare([tmp_path / "a.parquet"], tmp_path / "out", how)
    info = prepare([tmp_path / "a.parquet"], tmp_path / "out", dataclasses.replace(how, on_bad_row="null"))
    assert info.bad_rows == {"w": 1} | ({"price": 2} if dense == "none" else {})
    function = {
        "none": lambda x: x,
        "log1p": lambda x: math.log1p(max(x, 0)),
        "log3": lambda x: math.log(max(x, -2) + 3),
    }
    expected = [function[dense](0 if dense == "none" and abs(price) > 1e39 else price) for price in prices[:3]]
    assert read(tmp_path / "out")["price"].to_pylist() == pytest.approx(expected, rel=1e-6)


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


@pytest.mark.parametrize("name", ["price", "shop_id", "clicked"])
def test_a_column_that_is_there_twice_is_refused(tmp_path, name):
    (tmp_path / "schema.toml").write_text(SCHEMA)
    table = foreign(4)
    pq.write_table(table.append_column(name, table[name]).append_column("unused", table[name]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=f"a.parquet: has 2 columns {name}; allowed: one; rename one"):
        prepare([tmp_path / "a.parquet"], tmp_path / "out", options("parquet", schema=tmp_path / "schema.toml"))


def test_globs_name_files_by_number(tmp_path):
    for day in (0, 2, 10):
        folder = tmp_path / f"d{day}"
        folder.mkdir()
        (folder / "x.tsv").write_text("x")
        (folder / "y.txt").write_text("y")
    (tmp_path / "[odd]").write_text("z")
    names = [file.name.removeprefix(f"{tmp_path}/") for file in find(f"{tmp_path}/d*/*.tsv")]
    assert names == ["d0/x.tsv", "d2/x.tsv", "d10/x.tsv"]
    assert [file.name for file in find(f"{tmp_path}/d?")] == [
        f"{tmp_path}/d{d}/{f}" for d in (0, 2) for f in ("x.tsv", "y.txt")
    ]
    assert [file.name for file in find(tmp_path / "[odd]")] == [f"{tmp_path}/[odd]"]
    with pytest.raises(UserError, match="no such file"):
        find(f"{tmp_path}/none*/x")


def test_globs_stay_within_names_and_leave_hidden_files_out(tmp_path, monkeypatch):
    for name in ("a/x", "a/b/x", "a/b/c/x", "a/.h/x", "a/.x", "a/.y"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    monkeypatch.chdir(tmp_path)
    for pattern, expected in {
        "a/*": ["a/b/x", "a/x"],
        "*/x": ["a/x"],
        "*/*/x": ["a/b/x"],
        "a/**/x": ["a/b/c/x", "a/b/x", "a/x"],
        "**/c/*": ["a/b/c/x"],
        "a/.[xy]": ["a/.x", "a/.y"],
        "a/**": ["a/b/c/x", "a/b/x", "a/x"],
    }.items():
        for name in (pattern, f"{tmp_path}/{pattern}", f"file://{tmp_path}/{pattern}"):
            names = [file.path.removeprefix(f"{tmp_path}/").removeprefix("./") for file in find(name)]
            assert names == expected, name


@pytest.mark.parametrize("how", ["file", "local", "hard", "soft"])
def test_a_file_by_two_names_is_named_twice(tmp_path, how):
    log = tmp_path / "log"
    log.write_text("".join(map(kaggle_row, range(10))))
    other = tmp_path / "other"
    if how == "hard":
        other.hardlink_to(log)
    elif how == "soft":
        other.symlink_to(log)
    else:
        other = f"{how}://{log}"
    with pytest.raises(UserError, match=rf"named twice( \(also as {log}\))?; allowed: each file once"):
        prepare([log], tmp_path / "out", options("kaggle", test=(other,)))


def test_what_a_schema_file_takes_from_the_options_is_recorded_and_the_rest_has_no_effect(tmp_path):
    pq.write_table(foreign(30), tmp_path / "a.parquet")
    schema = tmp_path / "schema.toml"
    mixed = SCHEMA.replace(", rows = 5", "")  # shop is hashed to the options' rows, user has a vocabulary
    schema.write_text(mixed.replace("[categories]", "[categories]\nage2 = { column = 'place', ids = 'hash' }"))
    how = options("parquet", schema=schema, hash_rows=7, min_count=2)
    made = prepare([tmp_path / "a.parquet"], tmp_path / "out", how)
    assert {"hash_rows": 7, "min_count": 2, "missing_value": 1 << 64}.items() <= made.transform.items()
    for change in ({"hash_rows": 8}, {"min_count": 3}):
        with pytest.raises(UserError, match=f"out: exists already, with other {next(iter(change))}"):
            prepare([tmp_path / "a.parquet"], tmp_path / "out", dataclasses.replace(how, **change))
    schema.write_text(SCHEMA.replace("user = {}", "user = { ids = 'hash', rows = 3 }"))
    idle = dataclasses.replace(how, ids="keep", named=("hash_rows",))
    with pytest.raises(UserError, match=r"^hash_rows: would have no effect: no column takes it"):
        prepare([tmp_path / "a.parquet"], tmp_path / "out2", idle)


def test_batches_of_lists_weights_and_expanded_ids(tmp_path):
    (tmp_path / "schema.toml").write_text(SCHEMA)
    pq.write_table(foreign(100), tmp_path / "a.parquet")
    how = options("parquet", schema=tmp_path / "schema.toml", dense="none", shuffle=True)
    info = prepare([tmp_path / "a.parquet"], tmp_path / "out", how)
    rows = {round(row["price"] * 8): row for row in read(tmp_path / "out").to_pylist()}
    check_split(tmp_path / "out", info, "train")
    sizes = (1, 3, 1, 2)
    seen, drawn = [], {}
    for world_size in (1, 3):
        for rank in range(world_size):
            reader = SplitReader(tmp_path / "out", info, "train", rank, world_size, expand=sizes)
            for batch in reader.batches(reader.order(30, seed=1)):
                count = int((batch.weights > 0).sum())
                numbers = (batch.dense[:count, 1] * 8).round().int().tolist()
                seen += numbers
                for i, number in enumerate(numbers):
                    row = rows[number]
                    assert batch.weights[i] == row["w"] and batch.labels[i] == row["label"]
                    for category, size in zip(info.categories, sizes, strict=True):
                        bag = batch.sparse[category.name]
                        ids = bag.values()[bag.offsets()[i] : bag.offsets()[i + 1]].tolist()
                        own = row[category.name] if category.multi_hot else [row[category.name]]
                        assert ids[: len(own)] == own and len(ids) == len(own) * size
                        assert all(0 <= id_ < category.rows for id_ in ids)
                        if size > 1:
                            assert drawn.setdefault((category.name, own[0]), ids) == ids
                assert not batch.weights[count:].any()
                assert all(not batch.sparse[each.name].lengths()[count:].any() for each in info.categories)
    assert sorted(seen) == sorted([*range(100)] * 2)
    assert len({tuple(ids[1:]) for ids in drawn.values()}) > 3
    found = contents(tmp_path / "out")["categories"]
    lengths = [len(row["tags"]) for row in rows.values()]
    assert found["tags"]["ids_a_row"] == {"min": 0, "mean": sum(lengths) / 100, "max": 2}
    assert found["shop"]["rare"] is None
    assert found["user"]["missing"] == pytest.approx(10 / 100)
    for wrong, message in (((1, 1), "has 2 values for 4"), ((1, 1, 2, 1), "tags has lists of ids already")):
        with pytest.raises(UserError, match=message):
            SplitReader(tmp_path / "out", info, "train", 0, 1, expand=wrong)


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_what_is_prepared_and_loaded_is_what_was_written(tmp_path_factory, data):
    """Random small logs, in whatever way they are cut and shuffled: every row comes once an epoch, with its values."""
    folder = tmp_path_factory.mktemp("whole")
    count = data.draw(st.integers(1, 60), "rows")
    value = st.none() | st.integers(0, 4) | st.integers(0, 2**32 - 1)
    rows = [(number, data.draw(st.integers(0, 1)), data.draw(value), data.draw(value)) for number in range(count)]
    lines = [
        f"{label}\t{number}"
        + "\t" * 13
        + "".join("" if v is None else f"{v:x}" for v in [a])
        + "\t" * 25
        + ("" if b is None else f"{b:08X}")
        for number, label, a, b in rows
    ]
    cut = data.draw(st.integers(0, count - 1), "first file's rows")
    ends = data.draw(st.sampled_from(["\n", "\r\n"]))
    pieces = [part for part in (lines[:cut], lines[cut:]) if part]
    for number, part in enumerate(pieces):
        text = (ends.join(part) + data.draw(st.sampled_from([ends, ""]))).encode()
        packed = data.draw(st.booleans())
        (folder / f"{number}{'.gz' if packed else ''}").write_bytes(gzip.compress(text) if packed else text)
    ids, min_count, hash_rows = data.draw(st.sampled_from(["hash", "vocabulary"])), data.draw(st.integers(1, 3)), 11
    how = options("kaggle", ids=ids, min_count=min_count, hash_rows=hash_rows, dense="none")
    how = dataclasses.replace(how, shuffle=data.draw(st.booleans()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SEGMENT_ROWS", data.draw(st.integers(1, 70)))
        patch.setattr(module, "BUCKET_ROWS", data.draw(st.integers(1, 70)))
        patch.setattr(text_module, "BLOCK_BYTES", data.draw(st.integers(50, 3000)))
        info = prepare(sorted(folder.iterdir()), folder / "out", how)

    def expected(seen):
        if ids == "hash":
            return [(2**32 if v is None else v) % hash_rows for v in seen]
        counts = Counter(seen)
        kept = sorted((v for v in counts if counts[v] >= min_count), key=lambda v: (-counts[v], -1 if v is None else v))
        return [kept.index(v) + 1 if v in kept else 0 for v in seen]

    first, last = expected([row[2] for row in rows]), expected([row[3] for row in rows])
    world_size, batch_size = data.draw(st.integers(1, LANES)), data.draw(st.integers(1, 70))
    found = []
    for rank in range(world_size):
        reader = SplitReader(folder / "out", info, "train", rank, world_size)
        for batch in reader.batches(reader.order(batch_size, seed=5)):
            size = int(batch.weights.sum())
            columns = [batch.dense[:size, 0].int(), batch.labels[:size].int()]
            columns += [batch.sparse[name].values() for name in ("C1", "C26")]
            found += list(zip(*(column.tolist() for column in columns), strict=True))
    assert sorted(found) == [(n, label, first[n], last[n]) for n, label, _, _ in rows]


def kaggle_row(number):
    return f"{number % 2}\t{number}" + "\t1" * 12 + "\tff" * 26 + "\n"


def test_files_of_fsspecs_filesystems(tmp_path):
    with fsspec.open("memory://logs/day_0.gz", "wb") as file:
        file.write(gzip.compress("".join(map(kaggle_row, range(20))).encode()))
    with fsspec.open("memory://logs/day_1", "w") as file:
        file.write("".join(map(kaggle_row, range(20, 30))))
    info = prepare(["memory://logs/day_*"], tmp_path / "out", options("kaggle", ids="hash", dense="none"))
    assert read(tmp_path / "out")["I1"].to_pylist() == list(range(30))
    assert [name.split("/")[-1] for name in info.transform["sources"]["train"]] == ["day_0.gz", "day_1"]
    with pytest.raises(UserError, match="nothing://x: cannot be read: "):
        find("nothing://x")


@pytest.mark.parametrize("scheme", ["gs", "gcs"])
@pytest.mark.parametrize(("options", "seconds"), [("", 15), ("?scheme=http", 15), ("?retry_limit_seconds=2", 2)])
def test_retries_of_googles_storage_end(scheme, options, seconds):
    system, path = files._filesystem(f"{scheme}://anonymous@bucket/x{options}")
    assert path == "bucket/x" and system.__reduce__()[1][0]["retry_time_limit"].total_seconds() == seconds


@pytest.fixture
def s3(monkeypatch):
    """An S3 server on loopback with a bucket `logs`; gives the options of its URLs and a client."""
    boto3, server_of = pytest.importorskip("boto3"), pytest.importorskip("moto.server")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
    client.create_bucket(Bucket="logs")
    yield f"?endpoint_override={host}%3A{port}&scheme=http&region=us-east-1", client
    server.stop()


def test_files_on_s3(tmp_path, s3):
    where, client = s3
    client.put_object(
        Bucket="logs", Key="days/day_1.gz", Body=gzip.compress("".join(map(kaggle_row, range(20))).encode())
    )
    client.put_object(Bucket="logs", Key="days/day_2", Body="".join(map(kaggle_row, range(20, 30))).encode())
    client.put_object(Bucket="logs", Key="days/.hidden", Body=b"x")
    (tmp_path / "schema.toml").write_text(SCHEMA)
    pq.write_table(foreign(40), tmp_path / "a.parquet")
    client.put_object(Bucket="logs", Key="a.parquet", Body=(tmp_path / "a.parquet").read_bytes())
    for number, source in enumerate(["s3://logs/days", "s3://logs/days/day_*"]):
        out = tmp_path / f"out{number}"
        info = prepare([source + where], out, options("kaggle", ids="hash", dense="none"))
        assert read(out)["I1"].to_pylist() == list(range(30))
        assert info.transform["sources"] == {"train": ["s3://logs/days/day_1.gz", "s3://logs/days/day_2"]}
    info = prepare(["s3://logs/a.parquet" + where], tmp_path / "p", options("parquet", schema=tmp_path / "schema.toml"))
    assert info.splits["train"].rows == 40
    with pytest.raises(UserError, match="s3://logs/none: no such file"):
        find("s3://logs/none" + where)
    with pytest.raises(UserError, match="s3://nobucket/x"):
        find("s3://user:key@nobucket/x" + where)

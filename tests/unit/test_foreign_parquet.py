"""Parquet of other origin, and what lists, weights and expanded ids of it become in batches."""

import dataclasses
import gzip
import math
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_dist.data import prepare as module
from dlrm_dist.data import text as text_module
from dlrm_dist.data.contents import contents
from dlrm_dist.data.footers import check_split
from dlrm_dist.data.loader import SplitReader
from dlrm_dist.data.prepare import prepare
from dlrm_dist.errors import UserError
from tests.unit.format_cases import LANES, SCHEMA, foreign, options, read


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


@pytest.mark.parametrize("name", ["price", "shop_id", "clicked"])
def test_a_column_that_is_there_twice_is_refused(tmp_path, name):
    (tmp_path / "schema.toml").write_text(SCHEMA)
    table = foreign(4)
    pq.write_table(table.append_column(name, table[name]).append_column("unused", table[name]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=f"a.parquet: has 2 columns {name}; allowed: one; rename one"):
        prepare([tmp_path / "a.parquet"], tmp_path / "out", options("parquet", schema=tmp_path / "schema.toml"))


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

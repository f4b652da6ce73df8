"""Random small logs of every format, prepared and loaded, against a slow and obvious reference."""

import contextlib
import gzip
import tomllib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlrm_dist.data import prepare as module
from dlrm_dist.data import text
from dlrm_dist.data.options import PrepareOptions
from dlrm_dist.data.prepare import prepare
from tests.unit.data_reference import Row, assert_prepared, cut, fnv1a, hashed, vocabulary

PROFILE = settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
SPLIT_ROWS = {"none": 1, "kaggle": 14, "0.5,0.25,0.25": 4, "0.7,0.3,0": 4}
"""The fewest rows that each split can cut."""


@st.composite
def cases(draw):
    """How the rows are made, cut and prepared: options, and a generator of numbers for the rows."""
    split = draw(st.sampled_from(list(SPLIT_ROWS)))
    how = {
        "split": split,
        "ids": draw(st.sampled_from(["hash", "vocabulary"])),
        "hash_rows": draw(st.sampled_from([1, 11, 5000, (1 << 33) + 1])),
        "min_count": draw(st.integers(1, 3)),
        "shuffle": draw(st.booleans()),
        "lanes": draw(st.sampled_from([3, 4])),
        "group_rows": draw(st.integers(1, 8)),
        "dense": "none",
        "seed": draw(st.integers(0, 3)),
    }
    rows = draw(st.integers(SPLIT_ROWS[split], 90))
    return how, rows, np.random.default_rng(draw(st.integers(0, 1 << 30))), draw(st.integers(0, rows))


@contextlib.contextmanager
def small_pieces(rng):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SEGMENT_ROWS", int(rng.integers(1, 70)))
        patch.setattr(module, "BUCKET_ROWS", int(rng.integers(1, 70)))
        patch.setattr(text, "BLOCK_BYTES", int(rng.integers(50, 3000)))
        yield


def prepared(form, sources, folder, how, rng, **more):
    with small_pieces(rng):
        return prepare(sources, folder / "out", PrepareOptions(form, **{**how, **more}))


def ids_of(values, how, missing, train):
    """A column's ids."""
    if how["ids"] == "hash":
        return [hashed(value, missing, how["hash_rows"]) for value in values]
    known = vocabulary(values[:train], how["min_count"])
    return [known.get(value, 0) for value in values]


def some(rng, rows, most, gaps=0.1):
    """Numbers below `most`, few of them frequent; None where missing."""
    few = rng.integers(0, 4, rows)
    numbers = np.where(rng.random(rows) < 0.7, few, rng.integers(0, most, rows, dtype=np.uint64).astype(object))
    return [None if gap else int(number) for gap, number in zip(rng.random(rows) < gaps, numbers, strict=True)]


def train_rows(rows, split):
    return len(cut(range(rows), split)["train"])


@settings(PROFILE, max_examples=8)  # 26 columns take their time
@given(cases())
def test_kaggle(tmp_path_factory, case):
    how, count, rng, first = case
    folder = tmp_path_factory.mktemp("kaggle")
    labels = rng.integers(0, 2, count).tolist()
    dense = [[None if rng.random() < 0.2 else int(rng.integers(-3, 900)) for _ in range(13)] for _ in range(count)]
    categories = [some(rng, count, 1 << 32, 0.2) if c % 5 == 0 else [None] * count for c in range(26)]
    lines = [
        "\t".join(
            [str(labels[i])]
            + ["" if number is None else str(number) for number in dense[i]]
            + ["" if column[i] is None else f"{column[i]:08x}" for column in categories]
        )
        + "\n"
        for i in range(count)
    ]
    for name, part in (("a.gz", lines[:first]), ("b", lines[first:])):
        if part:
            raw = "".join(part).encode()
            (folder / name).write_bytes(gzip.compress(raw) if name == "a.gz" else raw)
    info = prepared("kaggle", sorted(folder.iterdir()), folder, how, rng)
    train = train_rows(count, how["split"])
    ids = [ids_of(column, how, 1 << 32, train) for column in categories]
    rows = [
        Row(labels[i], tuple(float(number or 0) for number in dense[i]), tuple(column[i] for column in ids))
        for i in range(count)
    ]
    assert_prepared(folder / "out", info, cut(rows, how["split"]), how["shuffle"])


@PROFILE
@given(cases())
def test_slot(tmp_path_factory, case):
    how, count, rng, _ = case
    folder = tmp_path_factory.mktemp("slot")
    rows, lines = [], []
    for _ in range(count):
        label, dense = int(rng.integers(2)), [int(number) / 8 for number in rng.integers(-80, 80, 13)]
        slots = {slot: int(rng.integers(0, 1_000_001)) for slot in range(1, 27) if rng.random() < 0.3}
        tokens = [f"{slot}:{id_}" for slot, id_ in slots.items()] + [f"click:{label}"]
        rng.shuffle(tokens)
        lines.append(" ".join([*tokens, *(f"dense_feature:{number}" for number in dense)]) + "\n")
        rows.append(Row(label, tuple(dense), tuple(slots.get(slot, 0) for slot in range(1, 27))))
    (folder / "log").write_text("".join(lines))
    info = prepared("slot", [folder / "log"], folder, how, rng)
    assert_prepared(folder / "out", info, cut(rows, how["split"]), how["shuffle"])


@PROFILE
@given(
    cases(), st.tuples(st.sampled_from(["<i4", ">i4", "<i8", ">i8"]), st.sampled_from(["<i4", "<i8"])), st.booleans()
)
def test_npy(tmp_path_factory, case, types, keep):
    how, count, rng, first = case
    how = how | ({"ids": "keep"} if keep else {})
    folder = tmp_path_factory.mktemp("npy")
    dense, labels = rng.random((count, 2), np.float32), rng.integers(0, 2, (count, 1)).astype(np.int32)
    ends = (0, first, count)
    values = []
    for place, type_ in enumerate(types):
        size = (ends[place + 1] - ends[place], 3)
        least, most = (0, 99) if keep else (-3, 3)
        sparse = rng.integers(least, most, size).astype(type_)
        values += [[value % (1 << (8 * sparse.dtype.itemsize)) for value in row] for row in sparse.tolist()]
        if size[0]:
            rows = slice(ends[place], ends[place + 1])
            for kind, array in (("dense", dense[rows]), ("sparse", sparse), ("labels", labels[rows])):
                np.save(folder / f"{place}_{kind}.npy", array)
    info = prepared("npy", sorted(folder.iterdir()), folder, how, rng)
    columns = list(zip(*values, strict=True))
    train = train_rows(count, how["split"])
    ids = columns if keep else [ids_of(column, how, 1 << 64, train) for column in columns]
    rows = [Row(int(labels[i, 0]), tuple(dense[i].tolist()), tuple(column[i] for column in ids)) for i in range(count)]
    assert_prepared(folder / "out", info, cut(rows, how["split"]), how["shuffle"])


SCHEMA = """
label = "clicked"
dense = ["age"]
weight = "w"
[categories]
number = {}
word = {}
shop = { column = "shop_id", ids = "hash", rows = 5 }
tags = { ids = "vocabulary", min_count = 2 }
codes = { ids = "hash", rows = 7 }
place = { ids = "keep", rows = 4 }
"""


@PROFILE
@given(cases())
def test_parquet_with_lists_and_weights(tmp_path_factory, case):
    how, count, rng, first = case
    folder = tmp_path_factory.mktemp("parquet")
    (folder / "schema.toml").write_text(SCHEMA)
    raw = foreign(rng, count)
    for name, rows in (("a.parquet", slice(0, first)), ("b.parquet", slice(first, count))):
        if len(range(count)[rows]):
            columns = {name: pa.array(values[rows], TYPES[name]) for name, values in raw.items()}
            pq.write_table(pa.table(columns), folder / name, row_group_size=int(rng.integers(1, 50)))
    info = prepared("parquet", sorted(folder.glob("*.parquet")), folder, how, rng, schema=folder / "schema.toml")
    train = train_rows(count, how["split"])
    ids = dict(reference_ids(raw, how, train))
    assert list(ids) == list(tomllib.loads(SCHEMA)["categories"]) == [category.name for category in info.categories]
    rows = [
        Row(
            int(raw["clicked"][i]),
            (float(raw["age"][i] or 0),),
            tuple(column[i] for column in ids.values()),
            raw["w"][i],
        )
        for i in range(count)
    ]
    assert_prepared(folder / "out", info, cut(rows, how["split"]), how["shuffle"])


TYPES = {"clicked": pa.bool_(), "age": pa.int16(), "w": pa.float64(), "number": pa.int64(), "word": pa.string()}
TYPES |= {"shop_id": pa.uint64(), "tags": pa.list_(pa.string()), "codes": pa.large_list(pa.int32()), "place": pa.int8()}


def foreign(rng, count):
    """Columns as Python values."""
    tags = [
        None if rng.random() < 0.1 else [None if t == 3 else f"t{t}" for t in rng.integers(0, 4, rng.integers(0, 4))]
        for _ in range(count)
    ]
    return {
        "clicked": (rng.random(count) < 0.4).tolist(),
        "age": [None if age == 7 else int(age) for age in rng.integers(-9, 9, count)],
        "w": (rng.integers(0, 9, count) / 4).tolist(),
        "number": [None if value is None else value - 2 for value in some(rng, count, 1 << 62)],
        "word": [None if value is None else f"wörd {value}" for value in some(rng, count, 9)],
        "shop_id": some(rng, count, (1 << 64) - 1),
        "tags": tags,
        "codes": [None if codes is None else [len(tag or "") - 1 for tag in codes] for codes in tags],
        "place": rng.integers(0, 4, count).tolist(),
    }


def reference_ids(raw, how, train):
    """Each category's name and ids."""
    numbers = [None if value is None else value % (1 << 64) for value in raw["number"]]
    words = [None if value is None else fnv1a(value) for value in raw["word"]]
    yield "number", ids_of(numbers, how, 1 << 64, train)
    yield "word", ids_of(words, how, 1 << 64, train)
    yield "shop", [hashed(value, 1 << 64, 5) for value in raw["shop_id"]]
    tags = [[fnv1a(tag) for tag in each or [] if tag is not None] for each in raw["tags"]]
    known = vocabulary([tag for each in tags[:train] for tag in each], 2)
    yield "tags", [tuple(known.get(tag, 0) for tag in each) for each in tags]
    yield "codes", [tuple(code % (1 << 64) % 7 for code in each or []) for each in raw["codes"]]
    yield "place", raw["place"]

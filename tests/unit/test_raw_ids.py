"""Raw ids from a log to batches, and what is refused on the way."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrm_dist import preflight
from dlrm_dist.data.contents import contents
from dlrm_dist.data.footers import check_split
from dlrm_dist.data.loader import SplitReader
from dlrm_dist.data.options import PrepareOptions
from dlrm_dist.data.prepare import prepare
from dlrm_dist.data.schema import RAW_IDS, read_info
from dlrm_dist.errors import RankError, UserError
from dlrm_dist.models.shape import dataset_shape, model_shape
from dlrm_dist.sections import DataSection, ModelSection
from tests.unit.kaggle_rows import LANES, by_number, options, random_rows, read, write

RAW = ("C3", "C17")


@pytest.fixture(scope="module")
def rows():
    return random_rows(200)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("raw")
    write(folder / "log", rows)
    prepare([folder / "log"], folder / "some", options(raw=RAW, split="0.8,0.1,0.1", shuffle=True))
    prepare([folder / "log"], folder / "all", options(ids="raw", split="0.8,0.1,0.1"))
    return folder


def values_of(row, column):
    return int(row[13 + column] or "100000000", 16)


def test_values_stay_as_they_are_and_a_missing_one_is_a_value_of_its_own(folder, rows):
    for split, start, stop in (("train", 0, 160), ("valid", 160, 180), ("test", 180, 200)):
        some, every = (by_number(read(folder / name, split)) for name in ("some", "all"))
        for number in range(start, stop):
            assert [some[number][name] for name in RAW] == [values_of(rows[number], int(name[1:])) for name in RAW]
            assert [every[number][f"C{i}"] for i in range(1, 27)] == [values_of(rows[number], i) for i in range(1, 27)]
    info = read_info(folder / "some")
    assert [each.name for each in info.categories if each.unbounded] == list(RAW)
    assert (info.transform["ids"], info.transform["raw"]) == ("vocabulary", list(RAW))
    assert not any((folder / "some" / "vocabulary" / f"{name}.parquet").exists() for name in RAW)
    schema = read(folder / "some", "train").schema
    assert [schema.field(name).type for name in ("C2", "C3")] == [pa.int32(), pa.int64()]


def test_the_same_again_does_nothing_and_other_columns_are_another_dataset(folder):
    prepare([folder / "log"], folder / "some", options(raw=RAW, split="0.8,0.1,0.1", shuffle=True))
    with pytest.raises(UserError, match="exists already, with other raw"):
        prepare([folder / "log"], folder / "some", options(raw=("C3",), split="0.8,0.1,0.1", shuffle=True))


def test_batches_have_the_ids_whole(folder, rows):
    info = read_info(folder / "some")
    check_split(folder / "some", info, "train")
    reader = SplitReader(folder / "some", info, "train", 0, 1)
    batches = list(reader.batches(reader.order(50, seed=0)))
    found = [id_ for batch in batches for id_ in batch.sparse["C17"].values().tolist()]
    assert batches[0].sparse.values().numpy().dtype == np.int64
    assert sorted(found) == sorted(values_of(row, 17) for row in rows[:160])
    with pytest.raises(UserError, match=r"data.expand_multi_hot: C3 has raw ids"):
        SplitReader(folder / "some", info, "train", 0, 1, expand=(1, 1, 2, *[1] * 23))


def test_what_inspect_says_of_them(folder, rows):
    figures = json.loads(json.dumps(contents(folder / "some")))
    column = figures["categories"]["C3"]
    values = [values_of(row, 3) for row in rows]
    assert column["ids"] is None and column["seen"] == len(set(values))
    assert column["missing"] == pytest.approx(values.count(1 << 32) / 200)


def test_of_64_bits_as_many_are_kept_as_an_id_has(tmp_path):
    """The two numbers above the last id, and a missing value, share ids: 2^63 - 1 and above count from 0 on again."""
    raw = [5, -1, (1 << 63) - 1, (1 << 63) - 2, None, *range(10, 30)]
    lists = [[value] * (number % 3) for number, value in enumerate(range(len(raw)))]
    table = pa.table(
        {
            "label": pa.array([number % 2 for number in range(len(raw))]),
            "n": pa.array([float(number) for number in range(len(raw))]),
            "user": pa.array(raw, pa.int64()),
            "name": pa.array([f"u{number}" for number in range(len(raw))]),
            "tags": pa.array(lists, pa.list_(pa.int64())),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "s.toml").write_text(
        'label = "label"\ndense = ["n"]\n[categories]\nuser = { ids = "raw" }\nname = { ids = "raw" }\n'
        'tags = { ids = "raw" }\n'
    )
    how = PrepareOptions("parquet", schema=tmp_path / "s.toml", dense="none", shuffle=False, lanes=LANES, group_rows=8)
    info = prepare([tmp_path / "a.parquet"], tmp_path / "out", how)
    assert all(each.unbounded for each in info.categories)
    found = sorted(read(tmp_path / "out", "train").to_pylist(), key=lambda row: row["n"])
    assert [row["user"] for row in found] == [5, ((1 << 64) - 1) % RAW_IDS, 0, RAW_IDS - 1, RAW_IDS - 1, *range(10, 30)]
    assert [row["tags"] for row in found] == lists
    assert len({row["name"] for row in found}) == len(raw)
    reader = SplitReader(tmp_path / "out", info, "train", 0, 1)
    (batch,) = reader.batches(reader.order(100, seed=0))
    assert sorted(batch.sparse["user"].values().tolist()) == sorted(row["user"] for row in found)


def test_an_id_that_is_none_is_refused(folder):
    info = read_info(folder / "some")
    reader = SplitReader(folder / "some", info, "train", 0, 1)
    table = read(folder / "some", "train")
    for bad in (-1, RAW_IDS):
        ids = pa.array([bad, *table["C3"].to_pylist()[1:]], pa.int64())
        spoiled = table.set_column(table.column_names.index("C3"), "C3", ids)
        with pytest.raises(RankError, match=r"column C3: id -?[0-9]+ lies outside"):
            reader._codec.decode(spoiled, np.arange(table.num_rows, dtype=np.uint32), 1)


def test_a_model_needs_managed_collisions_for_them(folder):
    info = read_info(folder / "some")
    with pytest.raises(UserError, match=r"category C3 has raw ids, .*--model.managed_collisions C3,C17"):
        dataset_shape(info, ModelSection())
    with pytest.raises(UserError, match="managed_collisions: there is no category C99; allowed: C1 to C26"):
        dataset_shape(info, ModelSection(managed_collisions=(*RAW, "C99")))
    with pytest.raises(UserError, match="managed_collisions: there is no category C3; allowed: C1 to C2"):
        model_shape(DataSection(path="nowhere"), ModelSection(num_embeddings=(5, 6), managed_collisions=("C3",)))
    section = ModelSection(managed_collisions=(*RAW, "C1"), managed_rows=50)
    rows = {feature.name: feature.rows for feature in dataset_shape(info, section).features}
    assert (rows["C1"], rows["C3"], rows["C17"], rows["C2"]) == (50, 50, 50, info.categories[1].rows)


def test_what_cannot_be_is_refused_before_a_rank_starts(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for name in ("RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)

    def check(*words):
        managed = ("--model.managed_collisions", ",".join(RAW), "--eval.split", "valid")
        preflight.check(["--data.path", "some", "--runtime.device", "cpu", *managed, *words], 2, 2)

    check()
    with pytest.raises(UserError, match=r"^sharding.types: table t_C3 has managed collisions"):
        check("--sharding.types", "table_wise")
    with pytest.raises(UserError, match=r"^table t_C3 has managed collisions and 2 rows: cut for 2 ranks"):
        check("--model.managed_rows", "2")
    check("--model.managed_rows", "4")


@pytest.mark.parametrize("shared", [{"shared_tables": ("C3+C4",)}, {"name": "paddlerec", "top_mlp": (8, 2)}])
def test_they_share_no_table(shared):
    section = ModelSection(num_embeddings=(50,) * 5, managed_collisions=("C3",), **shared)
    with pytest.raises(UserError, match=r"^model.managed_collisions: C3 shares its table with [14] other"):
        model_shape(DataSection(path="nowhere"), section)

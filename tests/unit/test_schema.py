import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_dist.data.schema import DatasetInfo, part_metadata, read_info, stripe_group_rows
from dlrm_dist.errors import UserError
from tests.helpers import LANES, numbered_dataset


@pytest.fixture
def folder(tmp_path):
    numbered_dataset(tmp_path / "clicks", {"train": 100, "valid": 5})
    return tmp_path / "clicks"


def refusal(folder):
    with pytest.raises(UserError) as caught:
        read_info(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_written_is_read(folder):
    info = read_info(folder)
    assert {name: (split.rows, split.clicks, len(split.parts)) for name, split in info.splits.items()} == {
        "train": (100, 34, 3),
        "valid": (5, 2, 1),
    }
    assert (info.version, info.lanes, info.dense) == (1, LANES, ("I1", "I2"))
    assert [(category.name, category.rows) for category in info.categories] == [("C1", 10_000), ("C2", 7)]
    assert read_info(str(folder)) == info
    info.write(folder)
    assert read_info(folder) == info


def test_no_dataset(tmp_path):
    told = f"{tmp_path}: no prepared dataset here (no dataset.json); make one: dlrm-dist prepare"
    assert refusal(tmp_path) == told
    assert refusal(tmp_path / "none").startswith(f"{tmp_path / 'none'}: no prepared dataset here")


def test_a_file_instead_of_a_folder(folder):
    assert refusal(folder / "dataset.json").startswith(f"{folder / 'dataset.json'}/dataset.json: cannot be read")


def broken(content, change):
    values = json.loads(content)
    return json.dumps(change(values) or values)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text[:50],
        lambda text: "[]",
        lambda text: "\x80",
        lambda text: broken(text, lambda values: values.update(version=2)),
        lambda text: broken(text, lambda values: values.pop("lanes") and None),
        lambda text: broken(text, lambda values: values.update(colour="red")),
        lambda text: broken(text, lambda values: values["splits"]["train"].update(rows="many")),
    ],
    ids=["empty", "cut", "list", "not UTF-8", "version", "key missing", "key unknown", "type"],
)
def test_a_dataset_file_that_is_broken_or_of_another_version(folder, change):
    path = folder / "dataset.json"
    path.write_bytes(change(path.read_text()).encode("latin-1"))
    assert refusal(folder).startswith(f"{path}: cannot be read as a dataset of version 1: ")


def test_missing_parts(folder):
    parts = read_info(folder).splits["train"].parts
    for part in parts[1:]:
        (folder / part).unlink()
    assert refusal(folder) == f"{folder}: 2 Parquet parts are missing, first {parts[1]}; prepare it again"


@pytest.mark.parametrize("content", [b"", b"label\n" * 50, b"PAR1" * 3], ids=["empty", "text", "no footer"])
def test_a_part_that_is_no_parquet(tmp_path, content):
    path = tmp_path / "part.parquet"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        part_metadata(path)
    assert str(caught.value).startswith(f"{path}: not a readable Parquet file: ") and "\n" not in str(caught.value)


@given(rows=st.integers(0, 1000), lanes=st.integers(1, 50))
def test_a_stripes_rows_are_spread_evenly(rows, lanes):
    sizes = stripe_group_rows(rows, lanes)
    assert (len(sizes), sum(sizes)) == (lanes, rows)
    assert sizes == sorted(sizes, reverse=True) and sizes[0] - sizes[-1] <= 1


def test_a_dataset_description_cannot_be_changed(folder):
    info = read_info(folder)
    with pytest.raises(ValueError, match="frozen"):
        info.lanes = 1
    assert DatasetInfo.model_validate_json(info.model_dump_json()) == info

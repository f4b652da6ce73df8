import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrm_dist.data import writer
from dlrm_dist.data.schema import METADATA_KEY, Category
from dlrm_dist.data.writer import Layout, Spool, columns_schema, rebatched, write_split

LANES, GROUP_ROWS = 4, 8
STRIPE = LANES * GROUP_ROWS


def numbered(rows, start=0):
    number = np.arange(start, start + rows)
    return pa.table(
        {
            "label": pa.array((number % 3 == 0).astype(np.uint8)),
            "I1": pa.array(number.astype(np.float32)),
            "C1": pa.array(number.astype(np.int32)),
        }
    )


def pieces(rows, size):
    return [numbered(min(size, rows - start), start) for start in range(0, rows, size)]


def schema():
    return columns_schema(("I1",), (Category(name="C1", rows=1000),), {"format": "kaggle"})


def group_sizes(folder, split):
    sizes = []
    for part in split.parts:
        footer = pq.read_metadata(folder / part)
        sizes.append([footer.row_group(group).num_rows for group in range(footer.num_row_groups)])
    return sizes


@pytest.mark.parametrize("rows", [1, 3, 4, 31, 32, 33, 64, 69, 95])
@pytest.mark.parametrize("size", [1, 10, 32, 100])
def test_parts_are_stripes_of_lanes_whatever_the_pieces(tmp_path, rows, size):
    with ThreadPoolExecutor(2) as pool:
        split = write_split(pieces(rows, size), tmp_path / "train", schema(), Layout(LANES, GROUP_ROWS), pool)
    full, last = divmod(rows, STRIPE)
    expected = [[GROUP_ROWS] * LANES] * full
    if last:
        expected.append([last // LANES + (lane < last % LANES) for lane in range(LANES)])
    assert group_sizes(tmp_path, split) == expected
    assert (split.rows, split.clicks) == (rows, -(-rows // 3))
    assert split.parts == tuple(f"train/part-{number:05d}.parquet" for number in range(len(expected)))
    written = pa.concat_tables([pq.read_table(tmp_path / part) for part in split.parts])
    assert written["C1"].to_pylist() == list(range(rows))


def test_row_groups_of_zero_rows_can_be_read(tmp_path):
    split = write_split([numbered(2)], tmp_path / "valid", schema(), Layout(LANES, GROUP_ROWS))
    file = pq.ParquetFile(tmp_path / split.parts[0])
    assert [file.read_row_group(group).num_rows for group in range(file.num_row_groups)] == [1, 1, 0, 0]


def test_files_say_what_their_columns_are_and_are_stored_for_fast_decoding(tmp_path):
    split = write_split(pieces(40, 7), tmp_path / "train", schema(), Layout(LANES, GROUP_ROWS))
    for part in split.parts:
        read = pq.read_schema(tmp_path / part)
        assert [(field.name, field.type, field.nullable) for field in read] == [
            ("label", pa.uint8(), False),
            ("I1", pa.float32(), False),
            ("C1", pa.int32(), False),
        ]
        assert json.loads(read.metadata[METADATA_KEY]) == {
            "label": "label",
            "dense": ["I1"],
            "categories": [{"name": "C1", "rows": 1000, "multi_hot": False}],
            "transform": {"format": "kaggle"},
            "weight": None,
        }
        column = pq.read_metadata(tmp_path / part).row_group(0).column(2)
        assert column.compression == "LZ4" and not column.has_dictionary_page and not column.is_stats_set


def test_an_error_of_a_writing_thread_is_raised(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(writer, "_write_stripe", fail)
    with ThreadPoolExecutor(2) as pool, pytest.raises(OSError, match="disk full"):
        write_split([numbered(10)], tmp_path / "train", schema(), Layout(LANES, GROUP_ROWS), pool)


def test_rebatched_tables_have_the_size_asked_and_no_empty_one():
    tables = list(rebatched([numbered(0), *pieces(20, 3), numbered(0)], 10))
    assert [table.num_rows for table in tables] == [10, 10]
    assert [table.num_rows for table in rebatched(pieces(23, 50), 10)] == [10, 10, 3]
    assert pa.concat_tables(tables)["C1"].to_pylist() == list(range(20))


def spooled(folder, rows, size, seed):
    spool = Spool(folder / "spool", rows, seed)
    for table in pieces(rows, size):
        spool.add(table)
    spool.close()
    out = [table["C1"].to_numpy() if order is None else table["C1"].to_numpy()[order] for table, order in spool.read()]
    assert not (folder / "spool").exists()
    return np.concatenate(out).tolist()


@pytest.mark.parametrize("bucket_rows", [10, 1000])
def test_a_shuffle_is_a_permutation_set_by_the_seed_alone(tmp_path, monkeypatch, bucket_rows):
    monkeypatch.setattr(writer, "BUCKET_ROWS", bucket_rows)
    first = spooled(tmp_path, 200, 7, seed=1)
    assert first != list(range(200)) and sorted(first) == list(range(200))
    assert spooled(tmp_path, 200, 64, seed=1) == first
    assert spooled(tmp_path, 200, 7, seed=2) != first


def test_a_shuffle_takes_every_row_everywhere(tmp_path, monkeypatch):
    """Row 0 of 8, in 4 buckets: over 400 seeds each place is expected 50 times (standard deviation 6.6)."""
    monkeypatch.setattr(writer, "BUCKET_ROWS", 2)
    places = np.bincount([spooled(tmp_path, 8, 3, seed).index(0) for seed in range(400)], minlength=8)
    assert places.min() > 50 - 5 * 6.6 and places.max() < 50 + 5 * 6.6


def test_without_a_seed_the_order_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "BUCKET_ROWS", 10)
    assert spooled(tmp_path, 200, 7, seed=None) == list(range(200))


def test_the_number_of_buckets_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "BUCKET_ROWS", 1)
    monkeypatch.setattr(writer, "MAX_BUCKETS", 3)
    spool = Spool(tmp_path / "spool", 100, 0)
    spool.add(numbered(100))
    spool.close()
    assert len(list((tmp_path / "spool").iterdir())) == 3
    assert sum(table.num_rows for table, _ in spool.read()) == 100

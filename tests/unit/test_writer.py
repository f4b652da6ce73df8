import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrm_dist.data import writer
from dlrm_dist.data.schema import METADATA_KEY, Category
from dlrm_dist.data.writer import Layout, columns_schema, write_split
from tests.helpers import write_table

LANES, GROUP_ROWS = 4, 8
STRIPE = LANES * GROUP_ROWS
LAYOUT = Layout(LANES, GROUP_ROWS)


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
    split = write_table(pa.concat_tables(pieces(rows, size)), tmp_path / "train", schema(), LAYOUT)
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
    split = write_table(numbered(2), tmp_path / "valid", schema(), LAYOUT)
    file = pq.ParquetFile(tmp_path / split.parts[0])
    assert [file.read_row_group(group).num_rows for group in range(file.num_row_groups)] == [1, 1, 0, 0]


def test_files_say_what_their_columns_are_and_are_stored_for_fast_decoding(tmp_path):
    split = write_table(numbered(40), tmp_path / "train", schema(), LAYOUT)
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
    with pytest.raises(OSError, match="disk full"):
        write_table(numbered(10), tmp_path / "train", schema(), LAYOUT)


def test_parts_that_are_there_are_not_made_again(tmp_path):
    whole = write_table(numbered(100), tmp_path / "a" / "train", schema(), LAYOUT)
    table, asked = numbered(100), []

    def rows_of(start, stop):
        asked.append(start)
        return table[start:stop]

    (tmp_path / "b").mkdir()
    shutil.copytree(tmp_path / "a" / "train", tmp_path / "b" / "train")
    (tmp_path / "b" / "train" / "part-00002.parquet").unlink()
    with ThreadPoolExecutor(2) as pool:
        again = write_split(rows_of, 100, tmp_path / "b" / "train", schema(), LAYOUT, pool)
    assert again == whole and asked == [2 * STRIPE]
    for part in whole.parts:
        assert (tmp_path / "a" / part).read_bytes() == (tmp_path / "b" / part).read_bytes()

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_dist.data import vocabulary
from dlrm_dist.data.vocabulary import Counting, ValueCounts, Vocabulary, hash_encoder, id_type

HEX = st.text("0123456789abcdefABCDEF", max_size=8)
VALUES = st.lists(st.none() | st.integers(0, 5) | st.integers(0, 2**32 - 1), max_size=60)


@given(VALUES, st.sampled_from([1, 7, 1_000_000, 2**31, 2**31 + 1, 2**33]))
def test_hash_is_a_modulo_of_64_bits(values, rows):
    ids = hash_encoder(rows)(pa.array(values, pa.uint32()))
    assert ids.type == id_type(rows) and ids.null_count == 0
    assert ids.to_pylist() == [(2**32 if value is None else value) % rows for value in values]


def test_ids_that_need_64_bits_get_them():
    assert (id_type(2**31), id_type(2**31 + 1)) == (pa.int32(), pa.int64())


@given(st.lists(VALUES, max_size=6), st.integers(1, 4), st.sampled_from([0, 3, 1 << 20]))
def test_vocabulary_follows_the_obvious_definition(blocks, min_count, compact_rows):
    counts = ValueCounts()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "_COMPACT_ROWS", compact_rows)
        for block in blocks:
            counts.add(pa.array(block, pa.uint32()))
    seen = Counter(value for block in blocks for value in block)
    made = Vocabulary.of(counts.table(), min_count)
    kept = [value for value, count in seen.items() if count >= min_count]
    kept.sort(key=lambda value: (-seen[value], -1 if value is None else value))
    assert made.table.to_pydict() == {"value": kept, "count": [seen[value] for value in kept]}
    assert made.rows == 1 + len(kept)
    asked = [*seen, None, 77, 2**32 - 1]
    ids = {value: number for number, value in enumerate(kept, 1)}
    encoded = made.encode(pa.array(asked, pa.uint32()))
    assert encoded.type == pa.int32() and encoded.to_pylist() == [ids.get(value, 0) for value in asked]


def test_counting_writes_a_vocabulary_a_column_and_encodes_in_the_order_asked(tmp_path):
    table = pa.table({"C1": pa.array([9, 9, 4, None], pa.uint32()), "C2": pa.array([1, 2, 2, 2], pa.uint32())})
    with ThreadPoolExecutor(2) as pool:
        counting = Counting(["C1", "C2"])
        counting.add(table, pool)
        coding = counting.finish(1, tmp_path / "vocabulary")
        encoded = coding.encode(table, np.array([3, 0, 1, 2]), pool)
    assert coding.rows == {"C1": 4, "C2": 3}
    assert encoded.to_pydict() == {"C1": [2, 1, 1, 3], "C2": [1, 2, 1, 1]}
    written = pq.read_table(tmp_path / "vocabulary" / "C1.parquet")
    assert written.schema.types == [pa.uint32(), pa.int64()]
    assert written.to_pydict() == {"value": [9, None, 4], "count": [2, 1, 1]}

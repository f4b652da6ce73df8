from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_dist.data import vocabulary
from dlrm_dist.data.vocabulary import Vocabulary, count_values, encoded, hash_encoder, id_type
from dlrm_dist.errors import UserError

VALUES = st.lists(st.none() | st.integers(0, 5) | st.integers(0, 2**32 - 1), max_size=60)
WIDE = st.lists(st.none() | st.integers(0, 5) | st.integers(0, 2**64 - 1), max_size=60)


@given(VALUES, st.sampled_from([1, 7, 1_000_000, 2**31, 2**31 + 1, 2**33]))
def test_hash_is_a_modulo_of_64_bits(values, rows):
    ids = hash_encoder(rows, 2**32)(pa.array(values, pa.uint32()))
    assert ids.type == id_type(rows) and ids.null_count == 0
    assert ids.to_pylist() == [(2**32 if value is None else value) % rows for value in values]


@given(WIDE, st.sampled_from([1, 7, 1_000_000, 2**31, 2**31 + 1, 2**40 - 1]))
def test_wide_values_are_hashed_in_64_bits_too(values, rows):
    ids = hash_encoder(rows, 2**64)(pa.array(values, pa.uint64()))
    assert ids.to_pylist() == [(2**64 if value is None else value) % rows for value in values]


def test_ids_that_need_64_bits_get_them():
    assert (id_type(2**31), id_type(2**31 + 1)) == (pa.int32(), pa.int64())


@settings(deadline=None)  # the first call compiles
@given(st.lists(WIDE, max_size=6), st.integers(1, 4), st.booleans(), st.integers(1, 40))
def test_vocabulary_follows_the_obvious_definition_in_any_memory(blocks, min_count, wide, rows_in_memory):
    type_ = pa.uint64() if wide else pa.uint32()
    blocks = [[value if wide or value is None else value % 2**32 for value in block] for block in blocks]
    arrays = [pa.array(block, type_) for block in blocks] or [pa.array([], type_)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "_LEAST_RUN", 2)
        patch.setattr(vocabulary, "_KEPT_BYTES", 0)
        found = count_values(lambda: arrays, min_count, rows_in_memory * 2 * vocabulary._MERGED_BYTES)
    made = Vocabulary.of(found, min_count)
    seen = Counter(value for block in blocks for value in block)
    kept = [value for value, count in seen.items() if count >= min_count]
    kept.sort(key=lambda value: (-seen[value], -1 if value is None else value))
    assert made.table.to_pydict() == {"value": kept, "count": [seen[value] for value in kept]}
    assert made.rows == 1 + len(kept)
    asked = [*seen, None, 77, 2**32 - 1]
    ids = {value: number for number, value in enumerate(kept, 1)}
    coded = made.encoder()(pa.array(asked, type_))
    assert coded.type == pa.int32() and coded.to_pylist() == [ids.get(value, 0) for value in asked]


def test_more_values_than_fit_are_an_error_of_memory():
    values = pa.array(np.arange(100_000, dtype=np.uint32))
    with pytest.raises(MemoryError):
        count_values(lambda: [values], 1, 1_000_000)
    assert len(count_values(lambda: [values], 2, 1_000_000).values) == 0


def test_lists_are_counted_and_coded_by_their_values():
    lists = pa.array([[5, 5], [], [7, 5]], pa.list_(pa.uint64()))
    made = Vocabulary.of(count_values(lambda: [lists[1:], lists[:1]], 1, 10**9), 1)
    assert made.table.to_pydict() == {"value": [5, 7], "count": [3, 1]}
    assert encoded(lists[1:], made.encoder()).to_pylist() == [[], [2, 1]]
    assert encoded(lists, hash_encoder(6, 2**64)).to_pylist() == [[5, 5], [], [1, 5]]


def test_a_vocabulary_is_read_as_it_was_written(tmp_path):
    for type_ in (pa.uint32(), pa.uint64()):
        made = Vocabulary(pa.table({"value": pa.array([9, None, 4], type_), "count": pa.array([2, 1, 1], pa.int64())}))
        made.write(tmp_path / "C1.parquet")
        assert pq.read_table(tmp_path / "C1.parquet").equals(made.table)
        assert Vocabulary.read(tmp_path / "C1.parquet").table.equals(made.table)
        assert made.encoder()(pa.array([4, 9, None, 5], type_)).to_pylist() == [3, 1, 2, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["C1.parquet"]
    with pytest.raises(UserError, match="no such vocabulary"):
        Vocabulary.read(tmp_path / "C2.parquet")

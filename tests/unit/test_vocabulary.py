import contextlib
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_dist.data import counting, vocabulary
from dlrm_dist.data.counting import count_values, write_vocabulary
from dlrm_dist.data.vocabulary import Vocabulary, encoded, hash_encoder, id_type
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


def vocabulary_of(arrays, folder, min_count, budget=10**9):
    """Count and write, as `Coding` does."""
    shutil.rmtree(folder, ignore_errors=True)
    partitions = count_values(lambda: arrays, folder, min_count, budget)
    missing = sum(array.null_count for array in arrays)
    write_vocabulary(partitions, missing if missing >= min_count else 0, folder / "made")
    return Vocabulary(folder / "made"), len(partitions)


def ids_of(made, values, budget=10**9):
    """The ids of values, by as many encoders as there are; only one may know a value."""
    found = [encode(values) for encode in made.encoders(budget)]
    assert {ids.type for ids in found} == {pa.int32()}
    columns = [ids.to_pylist() for ids in found]
    if values.null_count == 0:
        assert all(sum(map(bool, each)) <= 1 for each in zip(*columns, strict=True))
    return [max(each) for each in zip(*columns, strict=True)]


@contextlib.contextmanager
def small(monkey, run, group):
    with monkey.context() as patch:
        patch.setattr(counting, "_LEAST_RUN", run)
        patch.setattr(counting, "GROUP_ROWS", group)
        patch.setattr(vocabulary, "GROUP_ROWS", group)
        yield


@settings(deadline=None, max_examples=200)  # the first call compiles
@given(st.lists(WIDE, max_size=6), st.integers(1, 4), st.booleans(), st.integers(1, 40), st.integers(1, 9))
def test_vocabulary_follows_the_obvious_definition_in_any_memory(blocks, min_count, wide, run, group):
    type_ = pa.uint64() if wide else pa.uint32()
    blocks = [[value if wide or value is None else value % 2**32 for value in block] for block in blocks]
    arrays = [pa.array(block, type_) for block in blocks] or [pa.array([], type_)]
    seen = Counter(value for block in blocks for value in block)
    kept = [value for value, count in seen.items() if count >= min_count]
    kept.sort(key=lambda value: (-seen[value], -1 if value is None else value))
    asked = [*seen, None, 77, 2**32 - 1]
    ids = {value: number for number, value in enumerate(kept, 1)}
    with tempfile.TemporaryDirectory() as folder, small(pytest.MonkeyPatch, run, group):
        made, _ = vocabulary_of(arrays, Path(folder) / "counted", min_count, 0)
        assert pq.read_table(Path(folder) / "counted" / "made").to_pydict() == {
            "value": kept,
            "count": [seen[value] for value in kept],
        }
        assert made.rows == 1 + len(kept)
        assert ids_of(made, pa.array(asked, type_), 0) == [ids.get(value, 0) for value in asked]
        again = Vocabulary.read(Path(folder) / "counted" / "made", Path(folder) / "copy", 0)
        assert (Path(folder) / "copy").read_bytes() == (Path(folder) / "counted" / "made").read_bytes()
        assert ids_of(again, pa.array(asked, type_), 0) == [ids.get(value, 0) for value in asked]


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
@pytest.mark.parametrize("shift", [0, 20])
def test_more_values_than_fit_are_counted_in_passes(tmp_path, monkeypatch, dtype, shift):
    values = np.random.default_rng(0).permutation(100_000).astype(dtype) << dtype(shift if dtype == np.uint64 else 0)
    arrays = [pa.array(part) for part in np.array_split(np.concatenate([values, values[:50_000], values[:7]]), 9)]
    with small(monkeypatch, 1 << 10, 1 << 12):
        made, passes = vocabulary_of(arrays, tmp_path / "many", 1, 1_000_000)
        assert 8 < passes < 40
        whole, one = vocabulary_of(arrays, tmp_path / "one", 1)
        assert one == 1
        assert (tmp_path / "many" / "made").read_bytes() == (tmp_path / "one" / "made").read_bytes()
        asked = pa.array(np.sort(values))
        assert len(list(made.encoders(100_000))) > 10
        ids = ids_of(made, asked, 100_000)
        assert ids == ids_of(whole, asked) and sorted(ids) == list(range(1, 100_001))
        assert vocabulary_of(arrays, tmp_path / "few", 2, 1_000_000)[0].rows == 50_001


def test_counting_goes_on_after_the_last_pass(tmp_path, monkeypatch):
    values = pa.array(np.random.default_rng(0).permutation(10_000).astype(np.uint64))
    with small(monkeypatch, 1 << 10, 1 << 12):
        whole = count_values(lambda: [values], tmp_path / "whole", 1, 0)
        calls = []

        def arrays(least):
            calls.append(1)
            if len(calls) == least:
                raise KeyboardInterrupt
            return [values]

        with pytest.raises(KeyboardInterrupt):
            count_values(lambda: arrays(5), tmp_path / "again", 1, 0)
        have = {path: path.stat().st_mtime_ns for path in (tmp_path / "again").iterdir()}
        assert len(have) == 3
        assert len(count_values(lambda: arrays(0), tmp_path / "again", 1, 0)) == len(whole)
        assert have.items() <= {path: path.stat().st_mtime_ns for path in (tmp_path / "again").iterdir()}.items()
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("whole", "again")]
    assert files[0] == files[1]


def test_lists_are_counted_and_coded_by_their_values(tmp_path):
    lists = pa.array([[5, 5], [], [7, 5]], pa.list_(pa.uint64()))
    made, _ = vocabulary_of([lists[1:], lists[:1]], tmp_path / "counted", 1)
    assert pq.read_table(tmp_path / "counted" / "made").to_pydict() == {"value": [5, 7], "count": [3, 1]}
    (encode,) = made.encoders(10**9)
    assert encoded(lists[1:], encode).to_pylist() == [[], [2, 1]]
    assert encoded(lists, hash_encoder(6, 2**64)).to_pylist() == [[5, 5], [], [1, 5]]


def test_a_wide_value_is_not_the_narrow_one_with_its_low_bits(tmp_path):
    narrow, _ = vocabulary_of([pa.array([7, 9, 9, None], pa.uint32())], tmp_path / "narrow", 1)
    wide = pa.array([7, 9, 7 + 2**32, 9 + 2**63, 2**64 - 1, None, 2**32], pa.uint64())
    assert ids_of(narrow, wide) == [3, 1, 0, 0, 0, 2, 0]
    wide, _ = vocabulary_of([pa.array([7, 9 + 2**32], pa.uint64())], tmp_path / "wide", 1)
    assert ids_of(wide, pa.array([7, 9], pa.uint32())) == [1, 0]


def test_a_vocabulary_is_read_as_it_was_written(tmp_path):
    for type_ in (pa.uint32(), pa.uint64()):
        made = pa.table({"value": pa.array([9, None, 4], type_), "count": pa.array([2, 1, 1], pa.int64())})
        pq.write_table(made, tmp_path / "C1.parquet", compression="zstd", row_group_size=2)
        found = Vocabulary.read(tmp_path / "C1.parquet", tmp_path / "copy", 10**9)
        assert pq.read_table(tmp_path / "copy").equals(made)
        assert ids_of(found, pa.array([4, 9, None, 5], type_)) == [3, 1, 2, 0]
    with pytest.raises(UserError, match="no such vocabulary"):
        Vocabulary.read(tmp_path / "C2.parquet", tmp_path / "copy", 10**9)


@pytest.mark.parametrize("values", [[1, 2, 3, 1], [1, 1, 2, 3], [None, 2, 3, None], [None, None, 1]])
@pytest.mark.parametrize("group", [1, 100])
def test_a_value_that_is_there_twice_is_an_error(tmp_path, monkeypatch, values, group):
    table = pa.table({"value": pa.array(values, pa.uint32()), "count": pa.array([1] * len(values), pa.int64())})
    pq.write_table(table, tmp_path / "C1.parquet")
    with small(monkeypatch, 1, group), pytest.raises(UserError, match=r"C1\.parquet: holds a value twice"):
        Vocabulary.read(tmp_path / "C1.parquet", tmp_path / "copy", 0)

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from dlrm_dist.data.spool import Chunk, Spool


def table(numbers):
    return pa.table(
        {"a": pa.array(numbers, pa.int64()), "b": pa.array([[n] * (n % 3) for n in numbers], pa.list_(pa.int32()))}
    )


@pytest.mark.parametrize("size", [1, 7, 50])
def test_rows_of_a_key_are_in_the_order_of_the_log_whatever_the_segments(tmp_path, size):
    keys = np.random.default_rng(0).integers(0, 4, 50)
    starts = range(0, 50, size)
    spool = Spool(tmp_path / "spool", len(starts), 5)
    for segment, start in enumerate(starts):
        assert not spool.has(segment)
        numbers = list(range(start, min(start + size, 50)))
        inside = keys[start : start + size]
        cut = segment % len(numbers)
        halves = ((numbers[:cut], inside[:cut], Counter(x=1)), (numbers[cut:], inside[cut:], None))
        spool.write(segment, (Chunk(table(some), each, faults) for some, each, faults in halves))
        assert spool.has(segment)
    rows = Spool(tmp_path / "spool", len(starts), 5).load()
    assert rows.counts.tolist() == [*np.bincount(keys, minlength=4), 0] and rows.faults == {"x": len(starts)}
    for key in range(4):
        expected = np.flatnonzero(keys == key).tolist()
        for start, stop in ((0, len(expected)), (1, 2), (3, len(expected) - 1)):
            found = rows.read(rows.slices(key, start, stop), {})
            assert found.to_pydict() == table(expected[start:stop]).to_pydict()
    columns = [rows.column("a", segment, 2) for segment in range(rows.files)]
    assert (
        sorted(x for arrays in columns for array in arrays for x in array.to_pylist())
        == np.flatnonzero(keys < 2).tolist()
    )

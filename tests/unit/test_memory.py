"""Bounded memory: what it does not change, and that it is kept."""

import contextlib
import dataclasses
import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrm_dist.data import coding, counting, parquet, spool, vocabulary, writer
from dlrm_dist.data import prepare as module
from dlrm_dist.data.options import PrepareOptions
from dlrm_dist.data.prepare import prepare
from dlrm_dist.data.schema import read_info
from dlrm_dist.data.taking import taken
from dlrm_dist.errors import UserError

SCHEMA = """
label = "clicked"
dense = ["number"]
[categories]
user = {}
words = { min_count = 1 }
pages = { ids = "hash", rows = 1000 }
"""


def lists(rng, lengths, high):
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(rng.integers(0, high, offsets[-1])))


def write_log(folder, rows=300):
    """Rows of lists, of which some are long; `number` tells them apart."""
    rng = np.random.default_rng(0)
    user = pa.array(rng.integers(-20, 20, rows), mask=rng.random(rows) < 0.1)
    lengths = rng.integers(0, 9, rows) + 60 * (np.arange(rows) > 250)
    table = pa.table(
        {
            "clicked": rng.integers(0, 2, rows),
            "number": np.arange(rows, dtype=np.float32),
            "user": user,
            "words": lists(rng, lengths, 2**40).take(pa.array(rng.permutation(rows))),
            "pages": lists(rng, rng.integers(0, 5, rows), 2**40),
        }
    )
    pq.write_table(table, folder / "log.parquet", row_group_size=170)
    (folder / "schema.toml").write_text(SCHEMA)
    return folder / "log.parquet", PrepareOptions(
        "parquet", schema=folder / "schema.toml", dense="none", min_count=3, lanes=4, group_rows=8
    )


def narrow(patch):
    """Let every step take as little memory as it can."""
    patch.setattr(module, "THREADS", 2)
    patch.setattr(module, "SEGMENT_ROWS", 110)
    patch.setattr(module, "_LISTS", 2000)
    patch.setattr(module, "_TABLES", 10**12)
    patch.setattr(spool, "_FEW_ROWS", 1)
    patch.setattr(counting, "_LEAST_RUN", 40)
    patch.setattr(parquet, "_READ_BYTES", 300)


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def counted_calls(patch, owner, name):
    calls, work = [], getattr(owner, name)

    def call(*words, **options):
        calls.append(words)
        return work(*words, **options)

    patch.setattr(owner, name, call)
    return calls


@pytest.mark.parametrize(("shuffle", "split"), [(False, "none"), (True, "0.9,0.05,0.05"), (True, "bars_x4")])
def test_little_memory_gives_the_same_bytes(tmp_path, monkeypatch, shuffle, split):
    log, how = write_log(tmp_path)
    how = dataclasses.replace(how, shuffle=shuffle, split=split)
    monkeypatch.setattr(module, "BUCKET_ROWS", 100)
    for owner in (counting, vocabulary):
        monkeypatch.setattr(owner, "GROUP_ROWS", 700)
    prepare([log], tmp_path / "much", how)
    with monkeypatch.context() as patch:
        narrow(patch)
        files = counted_calls(patch, spool.Spool, "_write")
        tables = counted_calls(patch, coding.Coding, "_encode")
        pieces = counted_calls(patch, writer._Stripe, "__init__")
        prepare([log], tmp_path / "little", how)
    assert len(files) > 20 and len(tables) > 100 and any(len(words[0]._pieces) > 1 for words in pieces)
    assert files_of(tmp_path / "much") == files_of(tmp_path / "little")
    rows = [
        row
        for name, each in read_info(tmp_path / "little").splits.items()
        for part in each.parts
        for row in pq.read_table(tmp_path / "little" / part).to_pylist()
    ]
    given = pq.read_table(log).to_pylist()
    assert sorted(row["number"] for row in rows) == [row["number"] for row in given]
    for row in rows:
        raw = given[int(row["number"])]
        assert row["label"] == raw["clicked"] and row["pages"] == [value % 1000 for value in raw["pages"]]
        assert len(row["words"]) == len(raw["words"])


def limit(patch, left):
    """Let so many steps be done, and then raise KeyboardInterrupt."""

    def limited(work):
        def call(*words, **options):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return work(*words, **options)

        return call

    steps = [(spool.Spool, "_write"), (coding.Coding, "_encode"), (counting, "_write"), (writer, "_writer")]
    for owner, name in [*steps, (coding, "write_vocabulary"), (vocabulary.Vocabulary, "move")]:
        patch.setattr(owner, name, limited(getattr(owner, name)))


def test_little_memory_goes_on_after_an_interrupt(tmp_path, monkeypatch):
    log, how = write_log(tmp_path, 150)
    monkeypatch.setattr(module, "BUCKET_ROWS", 100)
    for owner in (counting, vocabulary):
        monkeypatch.setattr(owner, "GROUP_ROWS", 200)
    narrow(monkeypatch)
    monkeypatch.setattr(module, "THREADS", 1)
    steps = [10**9]
    with monkeypatch.context() as patch:
        limit(patch, steps)
        prepare([log], tmp_path / "whole", how)
    total, runs = 10**9 - steps[0], 0
    while not (tmp_path / "out").exists():
        runs += 1
        assert runs < 6
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            limit(patch, [runs * total // 4])  # more each time, as a column is done again from its ids on
            prepare([log], tmp_path / "out", how)
    assert runs > 1
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "out")


def test_a_row_group_that_does_not_fit_is_refused_with_what_it_needs(tmp_path):
    log, how = write_log(tmp_path)
    with pytest.raises(UserError, match=r"^memory: 1,000,000,000 bytes are too few for a row group of 99,999,999 rows"):
        prepare([log], tmp_path / "out", dataclasses.replace(how, group_rows=99_999_999, memory=10**9))
    assert {path.name for path in tmp_path.iterdir()} == {"log.parquet", "schema.toml"}


def test_lists_in_another_order(tmp_path):
    rng = np.random.default_rng(0)
    for type_ in (np.int32, np.uint64):
        whole = lists(rng, rng.integers(0, 5, 50), 99).cast(pa.list_(pa.from_numpy_dtype(type_)))
        joined = pa.chunked_array([whole[3:20], whole[20:20], whole[20:41]]).combine_chunks()
        for order in (rng.permutation(38), np.array([5, 5, 0]), np.array([], np.int64)):
            assert taken(joined, order).equals(joined.take(pa.array(order)))
        assert taken(whole[7:30], np.arange(23)).equals(whole[7:30])


MEASURED = """
import json, re, sys
from pathlib import Path
from dlrm_dist.data.options import PrepareOptions
from dlrm_dist.data.prepare import prepare

folder = Path(sys.argv[1])
options = PrepareOptions("parquet", schema=folder / "schema.toml", memory=10**9, min_count=1)
info = prepare([folder / "log.parquet"], folder / "out", options)
status = Path("/proc/self/status").read_text()  # the resource module counts the process that started this one too
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) * 1024
print(json.dumps({"peak": peak, "rows": [each.rows for each in info.categories]}))
"""


def measured(folder, table):
    pq.write_table(table, folder / "log.parquet", compression="none")
    names = table.column_names[1:]
    (folder / "schema.toml").write_text(
        'label = "clicked"\n[categories]\n' + "".join(f"{name} = {{}}\n" for name in names)
    )
    done = subprocess.run([sys.executable, "-c", MEASURED, str(folder)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_memory_is_kept_with_long_lists(tmp_path):
    """80,000 rows of 0.4 GB."""
    rng = np.random.default_rng(0)
    columns = {f"c{i}": lists(rng, np.full(80_000, 200), 1000) for i in range(3)}
    found = measured(tmp_path, pa.table({"clicked": np.arange(80_000) % 2, **columns}))
    assert found["rows"] == [1001] * 3 and found["peak"] < 1.05e9


def test_memory_is_kept_with_many_values(tmp_path):
    """15 million, of which fewer than 4 million are counted at once."""
    values = np.random.default_rng(0).permutation(15_000_000) << 20
    found = measured(tmp_path, pa.table({"clicked": np.arange(15_000_000) % 2, "c": values}))
    assert found["rows"] == [15_000_001] and found["peak"] < 1.05e9

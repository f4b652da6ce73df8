"""Rows of Kaggle's format for the tests of prepare, and what should become of them."""

import dataclasses
import gzip
import math
import os
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrm_dist.data import writer
from dlrm_dist.data.options import PrepareOptions
from dlrm_dist.data.prepare import prepare
from dlrm_dist.data.schema import read_info
from dlrm_dist.data.spool import Spool
from dlrm_dist.data.vocabulary import Vocabulary

LANES, GROUP_ROWS = 4, 8


NAMES = ["label", *(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27))]


def options(**changes):
    return dataclasses.replace(PrepareOptions("kaggle", shuffle=False, lanes=LANES, group_rows=GROUP_ROWS), **changes)


def random_rows(count, seed=0):
    """Rows of fields; I13 numbers the rows, so that every row can be found again."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        dense = [str(rng.integers(-3, 50)) if rng.random() < 0.8 else "" for _ in range(12)]
        # Column i has about i + 2 frequent values, a tail of rare ones, and missing ones.
        values = [int(rng.integers(i + 2) if rng.random() < 0.7 else rng.integers(2**32)) for i in range(26)]
        texts = [f"{value:08x}" if rng.random() < 0.9 else "" for value in values]
        rows.append([str(rng.integers(2)), *dense, str(number), *texts])
    return rows


def write(path, rows):
    text = "".join("\t".join(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def read(folder, split):
    return pa.concat_tables([pq.read_table(folder / part) for part in read_info(folder).splits[split].parts])


def by_number(table):
    return {round(math.expm1(row["I13"])): row for row in table.to_pylist()}


def expected_ids(rows, train, min_count, max_rows=None):
    """The vocabulary ids of all rows, numbered from training rows: plain Python, one column after the other."""
    columns = []
    for column in range(14, 40):
        seen = Counter(row[column] for row in train)
        kept = sorted((text for text in seen if seen[text] >= min_count), key=lambda t: (-seen[t], int(t or "-1", 16)))
        kept = kept[: max_rows and max_rows - 1]
        ids = {text: number for number, text in enumerate(kept, 1)}
        columns.append((1 + len(kept), [ids.get(row[column], 0) for row in rows]))
    return columns


def check_values(rows, table, ids):
    """Every row of `rows` must be in `table` exactly once, with its values."""
    found = by_number(table)
    assert table.num_rows == len(rows) == len(found)
    for position, row in enumerate(rows):
        got = found[int(row[13])]
        assert got["label"] == int(row[0])
        dense = [math.log(max(int(text or 0), 0) + 1) for text in row[1:14]]
        assert [got[name] for name in NAMES[1:14]] == pytest.approx(dense, rel=1.2e-7)
        assert [got[name] for name in NAMES[14:]] == [column[position] for column in ids]


def spoiled(rows):
    """The rows with faults in some, and for skip and for null: the rows left, by number."""
    texts, left = [], {"skip": {}, "null": {}}
    for number, row in enumerate(rows):
        bad = list(row)
        if number % 7 == 1:
            bad[0] = "2"
        elif number % 7 == 3:
            bad[2], bad[20] = "1.5", "xyz"
            left["null"][number] = ["" if i in (2, 20) else field for i, field in enumerate(row)]
        elif number % 7 == 5:
            bad.pop()
        else:
            left["skip"][number] = left["null"][number] = row
        texts.append(bad)
    return texts, left


def interrupt_after(patch, calls):
    """Let so many segments, vocabularies and parts be written, and then raise KeyboardInterrupt; gives their list."""
    done = []

    def limited(work):
        def write(*words):
            if len(done) >= calls:
                raise KeyboardInterrupt
            work(*words)
            done.append(work)

        return write

    for owner, name in ((Spool, "write"), (Vocabulary, "move"), (writer, "_write_stripe")):
        patch.setattr(owner, name, limited(getattr(owner, name)))
    return done


def interrupted(monkeypatch, *arguments):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, 1)
        prepare(*arguments)


def rewritten(path):
    """The file with equally many bytes that are others."""
    content = path.read_bytes()
    path.write_bytes(content.replace(b"1\t", b"0\t", 5))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert len(content) == path.stat().st_size

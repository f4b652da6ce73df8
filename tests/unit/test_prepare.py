import contextlib
import dataclasses
import gzip
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrm_dist.cli import main
from dlrm_dist.data import kaggle, text, writer
from dlrm_dist.data import prepare as module
from dlrm_dist.data.files import File
from dlrm_dist.data.options import PrepareOptions
from dlrm_dist.data.prepare import prepare
from dlrm_dist.data.schema import METADATA_KEY, read_info, stripe_group_rows
from dlrm_dist.data.splits import split_lines
from dlrm_dist.data.spool import Spool
from dlrm_dist.data.vocabulary import Vocabulary
from dlrm_dist.data.work_folder import work_folder
from dlrm_dist.errors import UserError

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


def expected_ids(rows, train, min_count):
    """The vocabulary ids of all rows, numbered from training rows: plain Python, one column after the other."""
    columns = []
    for column in range(14, 40):
        seen = Counter(row[column] for row in train)
        kept = sorted((text for text in seen if seen[text] >= min_count), key=lambda t: (-seen[t], int(t or "-1", 16)))
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


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("ids", ["hash", "vocabulary"])
def test_values_splits_and_vocabulary_follow_the_obvious_definition(tmp_path, monkeypatch, ids, shuffle):
    monkeypatch.setattr(module, "BUCKET_ROWS", 64)
    monkeypatch.setattr(text, "BLOCK_BYTES", 5000)
    rows = random_rows(300)
    write(tmp_path / "a", rows[:100])
    write(tmp_path / "b.gz", rows[100:])
    chosen = options(ids=ids, hash_rows=1009, min_count=3, shuffle=shuffle, split="0.7,0.1,0.2")
    info = prepare([tmp_path / "a", tmp_path / "b.gz"], tmp_path / "out", chosen)
    assert info == read_info(tmp_path / "out")
    train = rows[:210]
    if ids == "hash":
        columns = [(1009, [int(row[c] or "100000000", 16) % 1009 for row in rows]) for c in range(14, 40)]
    else:
        columns = expected_ids(rows, train, 3)
    assert [(c.name, c.rows) for c in info.categories] == list(
        zip(NAMES[14:], [size for size, _ in columns], strict=True)
    )
    assert info.dense == tuple(NAMES[1:14])
    for split, start, stop in (("train", 0, 210), ("valid", 210, 240), ("test", 240, 300)):
        check_values(rows[start:stop], read(tmp_path / "out", split), [values[start:stop] for _, values in columns])
        assert info.splits[split].rows == stop - start
        assert info.splits[split].clicks == sum(row[0] == "1" for row in rows[start:stop])
    order = [list(by_number(read(tmp_path / "out", split))) for split in ("train", "valid", "test")]
    assert (order[0] == list(range(210))) is not shuffle
    assert order[1:] == [list(range(210, 240)), list(range(240, 300))]


def test_layout_and_metadata_of_every_part(tmp_path):
    write(tmp_path / "log", random_rows(150))
    info = prepare([tmp_path / "log"], tmp_path / "out", options(split="kaggle"), best_auc={"test": 0.75})
    assert info.best_auc == {"test": 0.75} and (info.lanes, info.group_rows) == (LANES, GROUP_ROWS)
    for split in info.splits.values():
        sizes = []
        for part in split.parts:
            footer = pq.read_metadata(tmp_path / "out" / part)
            sizes += [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
            content = json.loads(footer.metadata[METADATA_KEY])
            assert content["transform"] == info.transform
            assert content["categories"] == [category.model_dump() for category in info.categories]
        full, last = divmod(split.rows, LANES * GROUP_ROWS)
        expected = [GROUP_ROWS] * (full * LANES) + (stripe_group_rows(last, LANES) if last else [])
        assert sizes == expected
    types = pq.read_schema(tmp_path / "out" / info.splits["train"].parts[0]).types
    assert types == [pa.uint8()] + [pa.float32()] * 13 + [pa.int32()] * 26


def test_the_vocabulary_knows_training_rows_only(tmp_path):
    """A value is frequent in valid and test and absent from train: it must get the id 0 and stay out of the files."""
    train, other = random_rows(40), random_rows(40, seed=1)
    for row in other:
        row[14] = "abcdef98"
    paths = [write(tmp_path / name, rows) for name, rows in (("train", train), ("valid", other), ("test", other))]
    info = prepare([paths[0]], tmp_path / "out", options(valid=(paths[1],), test=(paths[2],), min_count=1))
    alone = prepare([paths[0]], tmp_path / "alone", options(min_count=1))
    assert set(alone.splits) == {"train"} and info.categories == alone.categories
    for name in NAMES[14:]:
        kept = pq.read_table(tmp_path / "out" / "vocabulary" / f"{name}.parquet")
        assert kept.equals(pq.read_table(tmp_path / "alone" / "vocabulary" / f"{name}.parquet"))
    assert vocabulary_values(tmp_path / "out", "C1").isdisjoint({0xABCDEF98})
    for split in ("valid", "test"):
        assert set(read(tmp_path / "out", split)["C1"].to_pylist()) == {0}
    assert read(tmp_path / "out", "train").equals(read(tmp_path / "alone", "train"))


def vocabulary_values(folder, name):
    return set(pq.read_table(folder / "vocabulary" / f"{name}.parquet")["value"].to_pylist())


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


@pytest.mark.parametrize("size", [300, 8 << 20])
@pytest.mark.parametrize("ids", ["hash", "vocabulary"])
@pytest.mark.parametrize("on_bad_row", ["skip", "null"])
def test_bad_rows_are_left_out_or_mended_and_counted(tmp_path, monkeypatch, on_bad_row, ids, size):
    monkeypatch.setattr(text, "BLOCK_BYTES", size)
    bad, left = spoiled(random_rows(70))
    write(tmp_path / "log", bad)
    how = options(on_bad_row=on_bad_row, split="kaggle", ids=ids, hash_rows=100, min_count=1)
    info = prepare([tmp_path / "log"], tmp_path / "out", how)
    assert info.bad_rows == {"label": 10, "I2": 10, "C7": 10, "columns": 10} and info.num_bad_rows == 30
    assert read_info(tmp_path / "out") == info and info.transform["on_bad_row"] == on_bad_row
    good = left[on_bad_row]
    for split, numbers in (("train", range(60)), ("test", range(60, 65)), ("valid", range(65, 70))):
        expected = [good[number] for number in numbers if number in good]
        if ids == "hash":
            coded = [(100, [(int(r[c], 16) if r[c] else 2**32) % 100 for r in expected]) for c in range(14, 40)]
        else:
            coded = expected_ids(expected, [good[number] for number in good if number < 60], 1)
        check_values(expected, read(tmp_path / "out", split), [column for _, column in coded])


def test_a_split_of_bad_rows_only_is_an_error(tmp_path):
    rows = random_rows(14)
    rows[12][0] = "x"
    write(tmp_path / "log", rows)
    with pytest.raises(UserError, match="split test: all its rows are bad"):
        prepare([tmp_path / "log"], tmp_path / "out", options(on_bad_row="skip", split="kaggle"))
    assert {path.name for path in tmp_path.iterdir()} == {"log"}


def test_bad_slot_rows_are_left_out(tmp_path):
    row = "click:1" + " dense_feature:0.5" * 13 + " 1:7\n"
    (tmp_path / "log").write_text(row + "click:2\n" + row.replace("1:7", "27:7") + row)
    info = prepare([tmp_path / "log"], tmp_path / "out", options(format="slot", on_bad_row="skip"))
    assert (info.splits["train"].rows, info.bad_rows) == (2, {"row": 2})


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_new_rows_get_the_ids_of_a_vocabulary(tmp_path, shuffle, inside):
    old, new = random_rows(60), random_rows(40, seed=1)
    write(tmp_path / "old.tsv", old)
    write(tmp_path / "new.tsv", new)
    first = prepare([tmp_path / "old.tsv"], tmp_path / "old", options(min_count=3))
    given = tmp_path / "old" / "vocabulary" if inside else tmp_path / "old"
    info = prepare([tmp_path / "new.tsv"], tmp_path / "new", options(vocabulary=given, shuffle=shuffle))
    assert info.categories == first.categories and info.transform["vocabulary"] == str(given)
    ids = [column[60:] for _, column in expected_ids(old + new, old, 3)]
    check_values(new, read(tmp_path / "new", "train"), ids)
    for name in NAMES[14:]:
        assert vocabulary_values(tmp_path / "new", name) == vocabulary_values(tmp_path / "old", name)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda file: file.unlink(), "C5.parquet: no such vocabulary"),
        (lambda file: file.write_text("no Parquet"), "C5.parquet: cannot be read as a vocabulary"),
        (lambda file: pq.write_table(pa.table({"id": [1]}), file), "C5.parquet: cannot be read as a vocabulary"),
        (
            lambda file: pq.write_table(pa.table({"value": pa.array([1, 1], pa.uint32()), "count": [2, 2]}), file),
            "C5.parquet: holds a value twice",
        ),
    ],
)
def test_a_bad_vocabulary_is_named(tmp_path, harm, message):
    write(tmp_path / "log", random_rows(20))
    prepare([tmp_path / "log"], tmp_path / "old", options())
    harm(tmp_path / "old" / "vocabulary" / "C5.parquet")
    with pytest.raises(UserError, match=re.escape(message)):
        prepare([tmp_path / "log"], tmp_path / "new", options(vocabulary=tmp_path / "old"))
    assert {path.name for path in tmp_path.iterdir()} == {"log", "old"}


@pytest.mark.parametrize("ids", ["hash", "vocabulary"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_the_result_depends_on_neither_blocks_threads_nor_gz(tmp_path, monkeypatch, ids, shuffle):
    monkeypatch.setattr(module, "BUCKET_ROWS", 50)
    rows = random_rows(170)
    (tmp_path / "plain").mkdir()
    (tmp_path / "packed").mkdir()
    write(tmp_path / "plain" / "1", rows)
    write(tmp_path / "packed" / "1.gz", rows[:60])
    write(tmp_path / "packed" / "2.gz", rows[60:])
    tables = []
    for number, (source, block, threads, segment) in enumerate(
        [("plain", 8 << 20, 1, 1 << 20), ("plain", 700, 4, 33), ("packed", 3000, 2, 64)]
    ):
        monkeypatch.setattr(text, "BLOCK_BYTES", block)
        monkeypatch.setattr(module, "THREADS", threads)
        monkeypatch.setattr(module, "SEGMENT_ROWS", segment)
        out = tmp_path / f"out{number}"
        prepare([tmp_path / source], out, options(ids=ids, shuffle=shuffle, split="kaggle"))
        tables.append([read(out, split) for split in ("train", "valid", "test")])
    assert tables[0] == tables[1] == tables[2]


def test_another_seed_is_another_order_of_the_same_rows(tmp_path):
    write(tmp_path / "log", random_rows(80))
    orders = []
    for number, seed in enumerate([1, 1, 2]):
        prepare([tmp_path / "log"], tmp_path / f"out{number}", options(shuffle=True, seed=seed))
        orders.append(list(by_number(read(tmp_path / f"out{number}", "train"))))
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == list(range(80))


@pytest.mark.parametrize(
    ("rows", "split", "sizes"),
    [
        (70, "kaggle", (60, 5, 5)),
        (76, "kaggle", (66, 5, 5)),
        (77, "kaggle", (66, 5, 6)),
        (14, "kaggle", (12, 1, 1)),
        (10, "0.8,0.1,0.1", (8, 1, 1)),
        (11, "1/3, 1/3, 1/3", (3, 4, 4)),
        (10, "0.7,0,0.3", (7, 0, 3)),
        (10, "1,0,0", (10, 0, 0)),
        (10, "none", (10, 0, 0)),
    ],
)
def test_split_sizes_in_file_order(tmp_path, rows, split, sizes):
    write(tmp_path / "log", random_rows(rows))
    info = prepare([tmp_path / "log"], tmp_path / "out", options(split=split))
    expected = {name: size for name, size in zip(("train", "valid", "test"), sizes, strict=True) if size}
    assert {name: part.rows for name, part in info.splits.items()} == expected
    numbers = [number for name in info.splits for number in by_number(read(tmp_path / "out", name))]
    assert numbers == list(range(rows))


def test_the_last_day_is_halved_and_days_come_by_number(tmp_path):
    rows = random_rows(35)
    (tmp_path / "days").mkdir()
    for day, (start, stop) in {2: (0, 10), 10: (20, 35), 9: (10, 20)}.items():
        write(tmp_path / "days" / f"day_{day}", rows[start:stop])
    info = prepare([tmp_path / "days"], tmp_path / "out", options(split="day"))
    assert {name: part.rows for name, part in info.splits.items()} == {"train": 20, "valid": 8, "test": 7}
    numbers = [number for name in info.splits for number in by_number(read(tmp_path / "out", name))]
    assert numbers == list(range(35))


@pytest.mark.parametrize("ids", ["hash", "vocabulary"])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("split", "shares"), [("bars_x1", (0.7, 0.2, 0.1)), ("bars_x4", (0.8, 0.1, 0.1))])
def test_random_splits_are_disjoint_complete_and_of_their_shares(tmp_path, monkeypatch, split, shares, shuffle, ids):
    rows = random_rows(500)
    for number in range(0, 500, 50):
        rows[number][2] = "bad"
    write(tmp_path / "log", rows)
    left = {number: row for number, row in enumerate(rows) if number % 50}
    found = []
    for number, size in enumerate((8 << 20, 5000)):
        monkeypatch.setattr(text, "BLOCK_BYTES", size)
        out = tmp_path / f"out{number}"
        how = options(split=split, shuffle=shuffle, ids=ids, hash_rows=1000, on_bad_row="skip", seed=3, min_count=1)
        info = prepare([tmp_path / "log"], out, how)
        assert {path.name for path in out.iterdir()} <= {"train", "valid", "test", "vocabulary", "dataset.json"}
        found.append({name: list(by_number(read(out, name))) for name in ("train", "valid", "test")})
        train = [left[row] for row in found[-1]["train"]]
        for name, share in zip(found[-1], shares, strict=True):
            assert info.splits[name].rows == len(found[-1][name]) == pytest.approx(500 * share, abs=45)
            expected = [left[row] for row in found[-1][name]]
            if ids == "vocabulary":
                check_values(expected, read(out, name), [column for _, column in expected_ids(expected, train, 1)])
    assert found[0] == found[1]
    assert sorted(row for rows in found[0].values() for row in rows) == sorted(left)
    assert found[0]["valid"] == sorted(found[0]["valid"])


def test_another_seed_draws_other_splits(tmp_path):
    write(tmp_path / "log", random_rows(300))
    tests = []
    for number, seed in enumerate((1, 1, 2)):
        prepare([tmp_path / "log"], tmp_path / f"out{number}", options(split="bars_x4", seed=seed))
        tests.append(set(by_number(read(tmp_path / f"out{number}", "test"))))
    assert tests[0] == tests[1] != tests[2]


def test_folders_are_read_by_name_without_hidden_files_and_subfolders(tmp_path):
    folder = tmp_path / "logs"
    (folder / "sub").mkdir(parents=True)
    rows = random_rows(30)
    for name, start in (("c", 20), ("a", 0), ("b", 10)):
        write(folder / name, rows[start : start + 10])
    (folder / ".hidden").write_text("no row\n")
    info = prepare([folder], tmp_path / "out", options())
    assert list(by_number(read(tmp_path / "out", "train"))) == list(range(30))
    assert info.transform["sources"] == {"train": [str(folder / name) for name in "abc"]}


def test_what_transform_records(tmp_path):
    log = write(tmp_path / "log", random_rows(20))
    hashed = prepare([log], tmp_path / "1", options(ids="hash", hash_rows=50, dense="none", shuffle=True, seed=5))
    common = {"format": "kaggle", "bins": False, "split": "none", "sources": {"train": [str(log)]}}
    common["source_bytes"] = log.stat().st_size
    expected = {"dense": "none", "ids": "hash", "hash_rows": 50, "missing_value": 2**32, "shuffle_seed": 5}
    assert hashed.transform == common | expected
    kept = prepare([log], tmp_path / "2", options(min_count=4))
    assert kept.transform == common | {"dense": "log1p", "ids": "vocabulary", "min_count": 4, "shuffle_seed": None}


@pytest.mark.parametrize("shuffle", [False, True])
def test_slot_rows_keep_ids_and_dense_values(tmp_path, shuffle):
    lines, expected = [], {}
    for number in range(50):
        slots = {slot: (number * 37 + slot) % 1_000_001 for slot in range(1, 27) if (number + slot) % 5}
        dense = [0.25, *[number / 64] * 12]
        tokens = [
            f"click:{number % 2}",
            *(f"dense_feature:{x}" for x in dense),
            *(f"{s}:{i}" for s, i in slots.items()),
        ]
        lines.append(" ".join(tokens))
        expected[number] = (number % 2, *dense, *(slots.get(slot, 0) for slot in range(1, 27)))
    (tmp_path / "log").write_text("\n".join(lines))
    info = prepare([tmp_path / "log"], tmp_path / "out", options(format="slot", shuffle=shuffle, ids="hash"))
    rows = read(tmp_path / "out", "train").to_pylist()
    assert {round(row["I2"] * 64): tuple(row.values()) for row in rows} == expected and len(rows) == 50
    assert {category.rows for category in info.categories} == {1_000_001}
    assert info.transform["shared_id_space"] is True and info.transform["ids"] == "slot"
    assert not (tmp_path / "out" / "vocabulary").exists()


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("ids", ["hash", "vocabulary"])
def test_a_bad_row_is_named_and_leaves_nothing_behind(tmp_path, monkeypatch, ids, shuffle):
    monkeypatch.setattr(text, "BLOCK_BYTES", 3000)
    rows = random_rows(90)
    rows[70][16] = "xyz"
    write(tmp_path / "good", random_rows(30))
    write(tmp_path / "bad", rows)
    message = f"{tmp_path}/bad:71: column C3 (17th): 'xyz' is no hexadecimal number"
    for split in ("none", "0.5,0.2,0.3"):
        chosen = options(ids=ids, shuffle=shuffle, split=split)
        with pytest.raises(UserError, match="^" + re.escape(message)):
            prepare([tmp_path / "good", tmp_path / "bad"], tmp_path / "o" / "out", chosen)
        assert not (tmp_path / "o").exists()


def test_an_error_leaves_nothing_behind(tmp_path, monkeypatch):
    write(tmp_path / "log", random_rows(90))

    def stop(*_):
        raise RuntimeError

    monkeypatch.setattr(writer, "_write_stripe", stop)
    with pytest.raises(RuntimeError):
        prepare([tmp_path / "log"], tmp_path / "o" / "p" / "out", options(shuffle=True))
    assert not (tmp_path / "o").exists()


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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

    for owner, name in ((Spool, "write"), (Vocabulary, "write"), (writer, "_write_stripe")):
        patch.setattr(owner, name, limited(getattr(owner, name)))
    return done


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ids", ["hash", "vocabulary"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_what_was_interrupted_goes_on_and_is_what_it_would_have_been(tmp_path, monkeypatch, ids, shuffle, packed):
    monkeypatch.setattr(module, "SEGMENT_ROWS", 30)
    monkeypatch.setattr(module, "BUCKET_ROWS", 40)
    monkeypatch.setattr(module, "THREADS", 1)
    monkeypatch.setattr(text, "BLOCK_BYTES", 3000)
    log = write(tmp_path / ("log.gz" if packed else "log"), spoiled(random_rows(200))[0])
    how = options(ids=ids, hash_rows=99, shuffle=shuffle, split="0.7,0.1,0.2", on_bad_row="null")
    with monkeypatch.context() as patch:
        expected = interrupt_after(patch, 1000)
        whole = prepare([log], tmp_path / "whole", how)
    done = []
    while not (tmp_path / "out").exists():
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            found = interrupt_after(patch, 3)
            prepare([log], tmp_path / "out", how)
        assert found, "a run that does nothing"
        done += found
    assert len(expected) >= 12 and Counter(done) == Counter(expected)  # nothing was done twice
    assert read_info(tmp_path / "out") == whole
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {log.name, "whole", "out"}


def test_other_options_do_not_go_on_with_what_was_interrupted(tmp_path, monkeypatch):
    log = write(tmp_path / "log", random_rows(100))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, 1)
        prepare([log], tmp_path / "out", options(ids="hash", hash_rows=10))
    prepare([log], tmp_path / "out", options(ids="hash", hash_rows=20))
    prepare([log], tmp_path / "alone", options(ids="hash", hash_rows=20))
    assert files_of(tmp_path / "out") == files_of(tmp_path / "alone")


def interrupted(monkeypatch, *arguments):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, 1)
        prepare(*arguments)


@pytest.mark.parametrize("split", ["bars_x1", "bars_x4"])
def test_another_seed_of_a_random_split_is_another_command(tmp_path, monkeypatch, split):
    monkeypatch.setattr(module, "SEGMENT_ROWS", 30)
    log = write(tmp_path / "log", random_rows(100))
    interrupted(monkeypatch, [log], tmp_path / "out", options(split=split, seed=1))
    info = prepare([log], tmp_path / "out", options(split=split, seed=2))
    assert info.transform["split_seed"] == 2 and info.transform["shuffle_seed"] is None
    prepare([log], tmp_path / "alone", options(split=split, seed=2))
    assert files_of(tmp_path / "out") == files_of(tmp_path / "alone")
    with pytest.raises(UserError, match="out: exists already, with other split_seed"):
        prepare([log], tmp_path / "out", options(split=split, seed=1))


def rewritten(path):
    """The file with equally many bytes that are others."""
    content = path.read_bytes()
    path.write_bytes(content.replace(b"1\t", b"0\t", 5))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert len(content) == path.stat().st_size


def test_a_source_that_was_rewritten_is_another_source(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SEGMENT_ROWS", 30)
    log = write(tmp_path / "log", random_rows(100))
    interrupted(monkeypatch, [log], tmp_path / "out", options())
    rewritten(log)
    prepare([log], tmp_path / "out", options())
    prepare([log], tmp_path / "alone", options())
    assert files_of(tmp_path / "out") == files_of(tmp_path / "alone")
    rewritten(log)
    with pytest.raises(UserError, match=f"out: exists already, made before {tmp_path}/log was changed; allowed: a new"):
        prepare([log], tmp_path / "out", options())
    log.unlink()
    assert read_info(tmp_path / "out").splits["train"].rows == 100


def test_a_vocabulary_that_was_made_again_is_another_one(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SEGMENT_ROWS", 30)
    log = write(tmp_path / "log", random_rows(100))
    how = options(vocabulary=tmp_path / "old")
    prepare([log], tmp_path / "old", options(min_count=3))
    interrupted(monkeypatch, [log], tmp_path / "out", how)
    shutil.rmtree(tmp_path / "old")
    prepare([log], tmp_path / "old", options(min_count=1))
    made = prepare([log], tmp_path / "out", how)
    assert made.categories == read_info(tmp_path / "old").categories
    assert prepare([log], tmp_path / "out", how) == made
    shutil.rmtree(tmp_path / "old")
    prepare([log], tmp_path / "old", options(min_count=2))
    with pytest.raises(UserError, match=r"out: exists already, made before .*/C1\.parquet was changed"):
        prepare([log], tmp_path / "out", how)


def test_a_dataset_that_does_not_say_from_which_files_is_not_taken_for_another(tmp_path):
    log = write(tmp_path / "log", random_rows(20))
    made = prepare([log], tmp_path / "out", options())
    made.model_copy(update={"inputs": ()}).write(tmp_path / "out")
    with pytest.raises(UserError, match="out: exists already, and does not say from which files"):
        prepare([log], tmp_path / "out", options())


@pytest.mark.parametrize("there", ["the dataset", "another folder"])
def test_what_is_there_already_is_judged_before_any_source_is_read(tmp_path, monkeypatch, there):
    log = write(tmp_path / "log.gz", random_rows(20))
    if there == "the dataset":
        prepare([log], tmp_path / "out", options())
    else:
        (tmp_path / "out").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(File, "open", lambda _: pytest.fail("a source is read"))
        if there == "the dataset":
            assert prepare([log], tmp_path / "out", options()) == read_info(tmp_path / "out")
        else:
            with pytest.raises(UserError, match="out: exists already, and is no dataset"):
                prepare([log], tmp_path / "out", options())


def test_two_at_once_are_refused(tmp_path):
    log = write(tmp_path / "log", random_rows(20))
    with work_folder(tmp_path / "out", {}), pytest.raises(UserError, match="out: another process is making it"):
        prepare([log], tmp_path / "out", options())
    assert (tmp_path / "out").is_dir() and not (tmp_path / ".out.preparing").exists()


def test_the_same_again_does_nothing_and_another_way_is_refused(tmp_path):
    log = write(tmp_path / "log", random_rows(50))
    made = prepare([log], tmp_path / "out", options(min_count=3))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert prepare([str(log)], tmp_path / "out", options(min_count=3)) == made
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    with pytest.raises(UserError, match="out: exists already, with other min_count; allowed: a new folder"):
        prepare([log], tmp_path / "out", options(min_count=4))
    with pytest.raises(UserError, match="out: exists already, with other lanes"):
        prepare([log], tmp_path / "out", options(min_count=3, lanes=5))
    write(log, random_rows(51))
    with pytest.raises(UserError, match="out: exists already, with other source_bytes"):
        prepare([log], tmp_path / "out", options(min_count=3))


def test_a_full_disk_is_one_line_and_leaves_nothing_behind(tmp_path, monkeypatch):
    write(tmp_path / "log", random_rows(90))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "_write_stripe", full)
    with pytest.raises(UserError, match=f"^{tmp_path}/o/out: cannot be written: .*No space left on device"):
        prepare([tmp_path / "log"], tmp_path / "o" / "out", options())
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("now", [20, 40])
def test_sources_that_change_meanwhile_are_an_error(tmp_path, monkeypatch, now, shuffle):
    write(tmp_path / "log", random_rows(30))

    def change(*arguments):
        write(tmp_path / "log", random_rows(now))
        return split_lines(*arguments)

    monkeypatch.setattr(module, "split_lines", change)
    with pytest.raises(UserError, match="changed while it was read"):
        prepare([tmp_path / "log"], tmp_path / "out", options(shuffle=shuffle))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "kaggle", "valid": (Path("log"),)}, "split: 'kaggle' cuts the sources, but files"),
        ({"split": "0.5,0.25,0.25", "test": (Path("log"),)}, "split: '0.5,0.25,0.25' cuts the sources, but files"),
        ({"split": "0.5,0.5"}, "split: '0.5,0.5'; allowed: none, kaggle, day, bars_x1, bars_x4, or three fractions"),
        ({"split": "0.5,0.5,0.1"}, "split: '0.5,0.5,0.1'; allowed: "),
        ({"split": "1.5,-0.5,0"}, "split: '1.5,-0.5,0'; allowed: "),
        ({"split": "half"}, "split: 'half'; allowed: "),
        ({"split": "0,0.5,0.5"}, "split train: has no rows, of 10 in all"),
        ({"split": "0.98,0.01,0.01"}, "split valid: has no rows, of 10 in all"),
        ({"split": "kaggle"}, "split valid: has no rows, of 10 in all"),
        ({"valid": (Path("log"),)}, "log: named twice"),
        ({"valid": (Path("none"),)}, "none: no such file"),
        ({"test": (Path("empty"),)}, "empty: is empty"),
        ({"test": (Path("folder"),)}, "folder: a folder without files"),
        ({"hash_rows": 0}, "hash_rows: 0 is impossible; allowed: 1 to"),
        ({"min_count": 0}, "min_count: 0 is impossible"),
        ({"lanes": 0}, "lanes: 0 is impossible"),
        ({"group_rows": 0}, "group_rows: 0 is impossible"),
        ({"seed": -1}, "seed: -1 is impossible; allowed: 0 to"),
        ({"format": "csv"}, "format: 'csv' is unknown; allowed: kaggle, terabyte, slot, npy, parquet"),
        ({"ids": "raw"}, "ids: 'raw' is unknown; allowed: hash, vocabulary"),
        ({"ids": "keep"}, "ids: 'keep' is not possible in format kaggle; allowed: hash, vocabulary"),
        ({"memory": 10}, "memory: 10 is impossible; allowed: 1000000000 to"),
        ({"schema": Path("s")}, "schema: maps the columns of format parquet"),
        ({"format": "parquet"}, "schema: maps the columns of format parquet"),
        ({"format": "npy"}, "log: belongs to no triple"),
        ({"format": "npy", "bins": True}, "bins: format npy has no integers"),
        (
            {"format": "slot", "on_bad_row": "null"},
            "on_bad_row: 'null' is not possible in format slot; allowed: error, s",
        ),
        (
            {"format": "parquet", "schema": Path("s"), "dense": "minmax"},
            "dense: 'minmax' is not possible in format parquet; allowed: log1p, log3, none",
        ),
        (
            {"split": "day"},
            "split train: has no rows, of 10 in all in 1 files; allowed: one or more in each split that ",
        ),
        ({"vocabulary": Path("log")}, "vocabulary: log: is a file; allowed: the folder of a dataset, or the folder "),
        ({"vocabulary": Path("none")}, "vocabulary: none: no such folder; allowed: the folder of a dataset"),
        ({"vocabulary": Path("folder"), "ids": "hash"}, "vocabulary: would have no effect: no column's ids come from"),
        ({"dense": "log"}, "dense: 'log' is unknown; allowed: log1p, log3, minmax, none"),
    ],
)
def test_bad_options_and_sources_are_refused_before_any_work(tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    write(Path("log"), random_rows(10))
    Path("empty").touch()
    Path("folder").mkdir()
    with pytest.raises(UserError, match="^" + re.escape(message)) as caught:
        prepare([Path("log")], Path("out"), options(**changes))
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "folder", "log"]


def test_an_error_leaves_folders_that_were_there_or_are_not_empty(tmp_path, monkeypatch):
    (tmp_path / "q").mkdir()
    rows = random_rows(5)
    rows[2][0] = "x"
    log = write(tmp_path / "log", rows)
    with pytest.raises(UserError, match="log:3: column label"):
        prepare([log], tmp_path / "q" / "w" / "e" / "out", options())
    assert (tmp_path / "q").is_dir() and not any((tmp_path / "q").iterdir())
    monkeypatch.setattr(module, "split_lines", lambda *_: write(tmp_path / "q" / "w" / "new", rows) and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare([log], tmp_path / "q" / "w" / "e" / "out", options())
    assert [path.name for path in (tmp_path / "q" / "w").iterdir()] == ["new"]


def test_a_newline_in_a_name_does_not_break_the_message(tmp_path):
    for name, message in (("a\nb", "a\\nb: no such file"), ("a\x1b[1m", "a\\x1b[1m: no such file")):
        with pytest.raises(UserError, match=re.escape(message)) as caught:
            prepare([tmp_path / name], tmp_path / "out", options())
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ids", "hash", "--min-count", "2"], "min_count: would have no effect: no column takes it for a new vocabu"),
        (
            ["--hash-rows", "9"],
            "hash_rows: would have no effect: no column takes it for a hash; allowed: with ids hash",
        ),
        (["--vocabulary", "old", "--min-count", "3"], "min_count: would have no effect"),
        (["--no-shuffle", "--seed", "0"], "seed: would have no effect: nothing is drawn; allowed: with a shuffle or"),
        (["--format", "slot", "--ids", "hash"], "ids: would have no effect: format slot keeps its ids"),
        (["--format", "slot", "--dense", "log1p"], "dense: would have no effect: format slot keeps its dense values"),
        (["--format", "npy", "--dense", "log3"], "dense: would have no effect: format npy keeps its dense values"),
        (["--format", "npy", "--ids", "keep", "--min-count", "2"], "min_count: would have no effect"),
    ],
)
def test_options_without_effect_are_refused(tmp_path, capsys, words, message):
    log = write(tmp_path / "log", random_rows(5))
    assert main(["prepare", str(log), str(tmp_path / "out"), "--format", "kaggle", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}") and said.endswith("; leave it out\n") and said.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"log"}


def test_terabyte_is_read_as_kaggle_and_recorded_by_its_name(tmp_path):
    log = write(tmp_path / "day_0", random_rows(40))
    first, second = (
        prepare([log], tmp_path / name, options(format=name, bins=True, ids="hash", hash_rows=9))
        for name in ("kaggle", "terabyte")
    )
    assert read(tmp_path / "kaggle", "train").equals(read(tmp_path / "terabyte", "train"))
    assert second.transform == first.transform | {"format": "terabyte"}


def test_a_glob_around_the_dataset_does_not_take_its_files(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SEGMENT_ROWS", 10)
    logs = tmp_path / "S"
    logs.mkdir()
    for name in ("a", "b"):
        write(logs / name, random_rows(20))
    for words in (["*"], ["**"], ["a", "b", "out"]):  # the last is what a shell makes of the first
        out = logs / "out"
        given = ([f"{logs}/{word}" for word in words if word != "out"], out, options())
        interrupted(monkeypatch, *given)
        made = prepare(*given)
        given = ([f"{logs}/{word}" for word in words], out, options())
        assert made.transform["sources"] == {"train": [str(logs / "a"), str(logs / "b")]}
        assert prepare(*given) == made
        shutil.rmtree(out)


def test_no_sources_are_an_error(tmp_path):
    with pytest.raises(UserError, match=r"^split train: has no sources"):
        prepare([], tmp_path / "out", options())


def test_what_exists_is_not_touched(tmp_path):
    log = write(tmp_path / "log", random_rows(5))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    with pytest.raises(UserError, match=f"^{tmp_path}/out: exists already, and is no dataset"):
        prepare([log], tmp_path / "out", options())
    assert (tmp_path / "out" / "mine").read_text() == "keep"


def test_integers_as_categories(tmp_path):
    integers = ["", "-20", "-3", "0", "2", "3", "10", "1000000"]
    lines = ["\t".join(["0", value, *[""] * 12, *["1"] * 26]) for value in integers]
    log = tmp_path / "log"
    log.write_text("\n".join(lines) + "\n")
    info = prepare([log], tmp_path / "out", options(bins=True, ids="hash", hash_rows=1000, shuffle=False))
    assert [category.name for category in info.categories] == [*kaggle.CATEGORIES, *kaggle.BINS]
    # floor(ln(x)^2) + 32 above 2, else x + 16, at least 0; a missing integer is a value of its own
    expected = [2**32 % 1000, 0, 13, 16, 18, 32 + 1, 32 + 5, 32 + 190]
    assert read(tmp_path / "out", "train")["B1"].to_pylist() == expected


KILLED = """
import os, signal, sys
from pathlib import Path
from dlrm_dist.data import prepare as module, writer
from dlrm_dist.data.options import PrepareOptions
from dlrm_dist.data.spool import Spool
from dlrm_dist.data.vocabulary import Vocabulary

module.SEGMENT_ROWS, module.BUCKET_ROWS, left = 30, 40, [int(sys.argv[3])]

def dying(work):
    def write(*words):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        work(*words)
    return write

for owner, name in ((Spool, "write"), (Vocabulary, "write"), (writer, "_write_stripe")):
    setattr(owner, name, dying(getattr(owner, name)))
options = PrepareOptions("kaggle", split="0.7,0.1,0.2", seed=3, lanes=4, group_rows=8)
module.prepare([Path(sys.argv[1])], Path(sys.argv[2]), options)
"""


def test_a_killed_process_is_followed_by_one_that_goes_on(tmp_path):
    log = write(tmp_path / "log", random_rows(150))
    words = [sys.executable, "-c", KILLED, str(log)]
    subprocess.run([*words, str(tmp_path / "whole"), "1000"], check=True, timeout=100)
    codes = []
    while not (tmp_path / "out").exists():
        codes.append(subprocess.run([*words, str(tmp_path / "out"), "13"], timeout=100).returncode)
        assert (tmp_path / "out").exists() or (tmp_path / ".out.preparing").is_dir()
    assert codes[:2] == [-9, -9] and codes[-1] == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"log", "whole", "out"}


def test_the_verb_says_what_it_did(tmp_path, monkeypatch, capsys):
    log = write(tmp_path / "log", random_rows(50))
    words = ["prepare", str(log), str(tmp_path / "out"), "--format", "kaggle", "--memory", "1.5GiB"]
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        assert main(words) == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    assert main(words) == 0
    assert "train 50 rows" in capsys.readouterr().out
    rewritten(log)
    assert main(words) == 2
    assert "exists already, made before" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "out")
    assert main(words) == 0
    capsys.readouterr()
    assert main(words) == 0
    assert "made before from the same sources in the same way; nothing to do" in capsys.readouterr().out
    (tmp_path / "odd").write_text("\t".join(NAMES) + "\n" + log.read_text())
    assert main([*words[:1], str(tmp_path / "odd"), str(tmp_path / "out2"), *words[3:], "--on-bad-row", "skip"]) == 0
    assert "out2: 1 bad rows: header line 1\n" in capsys.readouterr().out
    for size in ("much", "2XB", "", "9" * 400):
        assert main([*words[:-1], size]) == 2
        assert f"argument --memory: {size!r} is no size; write for example 2GB" in capsys.readouterr().err
    assert main([*words[:-1], "5MB"]) == 2
    assert "memory: 5000000 is impossible; allowed: 1000000000 to" in capsys.readouterr().err

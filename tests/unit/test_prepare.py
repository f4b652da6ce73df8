"""Prepare: values, ids, bad rows, layout, against plain Python."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrm_dist.cli import main
from dlrm_dist.data import kaggle, text
from dlrm_dist.data import prepare as module
from dlrm_dist.data.prepare import prepare
from dlrm_dist.data.schema import METADATA_KEY, read_info, stripe_group_rows
from tests.unit.kaggle_rows import (
    GROUP_ROWS,
    LANES,
    NAMES,
    by_number,
    check_values,
    expected_ids,
    interrupt_after,
    interrupted,
    options,
    random_rows,
    read,
    rewritten,
    spoiled,
    write,
)


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


def test_each_column_may_have_its_own_number_of_hashed_ids(tmp_path):
    rows = random_rows(60)
    write(tmp_path / "log", rows)
    sizes = tuple(range(3, 29))
    info = prepare([tmp_path / "log"], tmp_path / "out", options(ids="hash", hash_rows=sizes, shuffle=False))
    assert info == read_info(tmp_path / "out")
    assert tuple(each.rows for each in info.categories) == sizes
    ids = [(size, [int(row[c] or "100000000", 16) % size for row in rows]) for c, size in enumerate(sizes, 14)]
    check_values(rows, read(tmp_path / "out", "train"), [values for _, values in ids])


@pytest.mark.parametrize("max_rows", [2, 5, 1000])
def test_a_bounded_vocabulary_keeps_the_most_frequent_values(tmp_path, max_rows):
    rows = random_rows(200)
    write(tmp_path / "log", rows)
    info = prepare([tmp_path / "log"], tmp_path / "out", options(min_count=1, max_rows=max_rows, shuffle=False))
    columns = expected_ids(rows, rows, 1, max_rows)
    assert [each.rows for each in info.categories] == [size for size, _ in columns]
    assert max(size for size, _ in expected_ids(rows, rows, 1)) > 5  # else nothing would be bounded
    check_values(rows, read(tmp_path / "out", "train"), [values for _, values in columns])
    assert info.transform["max_rows"] == max_rows


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

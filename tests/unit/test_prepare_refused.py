"""Prepare: what is refused, in one line, leaving nothing behind."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrm_dist.cli import main
from dlrm_dist.data import prepare as module
from dlrm_dist.data import text, writer
from dlrm_dist.data.prepare import prepare
from dlrm_dist.errors import UserError
from tests.unit.kaggle_rows import options, random_rows, write


def test_a_split_of_bad_rows_only_is_an_error(tmp_path):
    rows = random_rows(14)
    rows[12][0] = "x"
    write(tmp_path / "log", rows)
    with pytest.raises(UserError, match="split test: all its rows are bad"):
        prepare([tmp_path / "log"], tmp_path / "out", options(on_bad_row="skip", split="kaggle"))
    assert {path.name for path in tmp_path.iterdir()} == {"log"}


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


def test_a_full_disk_is_one_line_and_leaves_nothing_behind(tmp_path, monkeypatch):
    write(tmp_path / "log", random_rows(90))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "_write_stripe", full)
    with pytest.raises(UserError, match=f"^{tmp_path}/o/out: cannot be written: .*No space left on device"):
        prepare([tmp_path / "log"], tmp_path / "o" / "out", options())
    assert not (tmp_path / "o").exists()


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
        ({"hash_rows": (5, 0)}, "hash_rows: 0 is impossible; allowed: 1 to"),
        (
            {"ids": "hash", "hash_rows": (5, 7)},
            "hash_rows: has 2 numbers for 26 categories; allowed: one, or one for each",
        ),
        ({"max_rows": 1}, "max_rows: 1 is impossible; allowed: 2 to"),
        ({"ids": "hash", "max_rows": 5, "named": ("max_rows",)}, "max_rows: would have no effect"),
        ({"min_count": 0}, "min_count: 0 is impossible"),
        ({"lanes": 0}, "lanes: 0 is impossible"),
        ({"group_rows": 0}, "group_rows: 0 is impossible"),
        ({"seed": -1}, "seed: -1 is impossible; allowed: 0 to"),
        ({"format": "csv"}, "format: 'csv' is unknown; allowed: kaggle, terabyte, slot, npy, parquet"),
        ({"ids": "text"}, "ids: 'text' is unknown; allowed: hash, vocabulary, raw"),
        ({"raw": ("C27",)}, "raw: there is no category C27; allowed: C1 to C26; name these only"),
        ({"ids": "raw", "raw": ("C3",), "named": ("raw",)}, "raw: would have no effect: all columns have raw ids"),
        ({"format": "slot", "raw": ("C3",)}, "raw: format slot does not take it; allowed: nothing"),
        (
            {"format": "parquet", "schema": Path("s"), "raw": ("C3",)},
            'raw: format parquet does not take it; allowed: ids = "raw"',
        ),
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


def test_no_sources_are_an_error(tmp_path):
    with pytest.raises(UserError, match=r"^split train: has no sources"):
        prepare([], tmp_path / "out", options())

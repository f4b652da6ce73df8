"""Prepare: what was interrupted goes on; the same again does nothing; something else is refused."""

import contextlib
import shutil
import subprocess
import sys
from collections import Counter

import pytest

from dlrm_dist.data import prepare as module
from dlrm_dist.data import text
from dlrm_dist.data.files import File
from dlrm_dist.data.prepare import prepare
from dlrm_dist.data.schema import read_info
from dlrm_dist.data.splits import split_lines
from dlrm_dist.data.work_folder import work_folder
from dlrm_dist.errors import UserError
from tests.unit.kaggle_rows import interrupt_after, interrupted, options, random_rows, rewritten, spoiled, write


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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


def test_what_exists_is_not_touched(tmp_path):
    log = write(tmp_path / "log", random_rows(5))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    with pytest.raises(UserError, match=f"^{tmp_path}/out: exists already, and is no dataset"):
        prepare([log], tmp_path / "out", options())
    assert (tmp_path / "out" / "mine").read_text() == "keep"


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

for owner, name in ((Spool, "write"), (Vocabulary, "move"), (writer, "_write_stripe")):
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

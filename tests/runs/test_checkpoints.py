"""Runs that are stopped, killed, moved and damaged, and go on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from benchmarks.soak import rank_of
from dlrm_dist.checkpoint.folder import damage_of
from tests import warm
from tests.helpers import ROOT, assert_refused, run_command

MODEL = ("--model.embedding_dim", "8", "--model.bottom_mlp", "16,8", "--model.top_mlp", "16,1")
STEPS = 20
"""1,003 rows in batches of 100: two epochs are 22 steps; the last batch of the first is short."""
STEPS_OF_AN_EPOCH = 11


def command(runs, data, ranks, name, *words):
    launcher = ["torchrun", "--nproc_per_node", str(ranks)] if ranks > 1 else ["python"]
    fixed = ("--data.path", data, "--train.batch_size", "100", "--train.log_every", "5", "--runtime.timeout_s", "60")
    here = ("--run.folder", runs, "--run.name", name, "--train.max_steps", str(STEPS))
    return [*launcher, "launch/train.py", *MODEL, *fixed, *here, *words]


def train(runs, data, ranks, name, *words):
    return run_command(*command(runs, data, ranks, name, *words), folder=ROOT)


def started(runs, data, ranks, name, *words):
    """Under a Python of its own, which gets the signals itself."""
    program, *rest = map(str, command(runs, data, ranks, name, *words))
    return subprocess.Popen(
        [str(Path(sys.executable).with_name(program)), *rest],
        cwd=ROOT,
        env={**{key: value for key, value in os.environ.items() if key != warm.VARIABLE}, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def kill_all(name):
    """SIGKILL to the launcher and the ranks of a run; torchrun puts the ranks into sessions of their own."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"launch/train.py" in words and name.encode() in words:
            os.kill(int(folder.name), signal.SIGKILL)


def checkpoints(runs, name):
    return sorted(path.name for path in (runs / name / "checkpoints").glob("step_*"))


def flat(values, prefix=""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def state(runs, name, step=STEPS):
    out = runs / f"{name}.pt"
    dcp_to_torch_save(runs / name / "checkpoints" / f"step_{step:09d}", out)
    return dict(flat(torch.load(out, weights_only=True)))


def train_lines(runs, name):
    lines = [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["samples"], line["loss"]) for line in lines if line["split"] == "train"]


def assert_bit_equal(runs, a, b):
    left, right = state(runs, a), state(runs, b)
    assert left.keys() == right.keys()
    assert [key for key in left if not torch.equal(left[key], right[key])] == []


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def whole(runs, clicks):
    """Runs that nothing disturbed, made when first asked for."""
    made = {}

    def get(ranks, *words):
        if (ranks, words) not in made:
            name = f"whole{ranks}-{len(made)}"
            done = train(runs, clicks, ranks, name, *words)
            assert done.returncode == 0, done.stderr
            made[ranks, words] = name
        return made[ranks, words]

    return get


@pytest.mark.parametrize(
    ("ranks", "types"), [(1, "table_wise,row_wise"), (2, "table_wise,row_wise"), (3, "data_parallel"), (4, "row_wise")]
)
def test_a_killed_run_goes_on_bit_for_bit(runs, clicks, whole, ranks, types):
    """SIGKILL with batches in flight, some steps behind the third; the rest reaches into the second epoch."""
    name, plan = f"killed{ranks}", ("--sharding.types", types)
    running = started(runs, clicks, ranks, name, "--checkpoint.every", "1", "--checkpoint.keep", "99", *plan)
    try:
        wait_for(lambda: (runs / name / "checkpoints" / "step_000000003").is_dir() or running.poll() is not None)
    finally:
        kill_all(name)
        running.communicate(timeout=30)
    left = checkpoints(runs, name)
    assert left and left[-1] < f"step_{STEPS:09d}", "the run had ended before it was killed"
    done = train(runs, clicks, ranks, name, "--train.resume", "auto", *plan)
    assert done.returncode == 0, done.stderr
    assert f"continuing after step {int(left[-1][5:])} " in done.stdout
    assert_bit_equal(runs, name, whole(ranks, *plan))
    steps = [line[0] for line in train_lines(runs, name)]
    assert steps == sorted(set(steps))
    for resumed, undisturbed in zip(train_lines(runs, name), train_lines(runs, whole(ranks, *plan)), strict=True):
        assert resumed == pytest.approx(undisturbed, rel=1e-12)  # step, rows, loss since the last report
    assert list((runs / name / "checkpoints").glob(".*")) == []


def test_a_run_that_is_asked_to_stop_saves_and_goes_on(runs, clicks, whole):
    running = started(runs, clicks, 1, "stopped", "--train.max_steps", "100000", "--train.epochs", "9000")
    wait_for(lambda: (runs / "stopped" / "metrics.jsonl").exists())
    running.send_signal(signal.SIGTERM)
    _, told = running.communicate(timeout=60)
    assert running.returncode == 75
    assert "asked to stop: saved after step" in told and "Traceback" not in told
    (left,) = checkpoints(runs, "stopped")
    assert f"saved after step {int(left[5:])};" in told


def test_evaluation_in_between_changes_nothing(runs, clicks, whole):
    kept = ("--checkpoint.keep", "1", "--checkpoint.each_epoch", "true")
    done = train(runs, clicks, 2, "scored", "--eval.every", "3", *kept)
    assert done.returncode == 0, done.stderr
    assert_bit_equal(runs, "scored", whole(2))
    scored = [json.loads(line) for line in (runs / "scored" / "metrics.jsonl").read_text().splitlines()]
    best = max((line for line in scored if line["split"] == "valid"), key=lambda line: line["auc"])
    assert checkpoints(runs, "scored") == sorted(
        {f"step_{step:09d}" for step in (best["step"], STEPS_OF_AN_EPOCH, STEPS)}
    )


def test_two_runs_on_one_folder_exclude_each_other(runs, clicks):
    running = started(runs, clicks, 1, "held", "--train.max_steps", "100000", "--train.epochs", "9000")
    try:
        wait_for(lambda: (runs / "held" / "metrics.jsonl").exists())
        assert_refused(train(runs, clicks, 1, "held", "--train.resume", "auto"), "held: another run is using this")
    finally:
        kill_all("held")
        running.communicate(timeout=30)


def test_a_hung_rank_is_named_and_a_killed_one(runs, clicks):
    for number, (what, said) in enumerate(
        ((signal.SIGSTOP, "rank 1 did not answer within 8 s (runtime.timeout_s)"), (signal.SIGKILL, "rank 1 went away"))
    ):
        words = ("--train.max_steps", "100000", "--train.epochs", "9000", "--runtime.timeout_s", "8")
        running = started(runs, clicks, 3, f"hung{number}", *words)
        wait_for(lambda number=number: (runs / f"hung{number}" / "metrics.jsonl").exists())
        os.kill(rank_of(f"hung{number}", 1), what)
        try:
            wait_for(lambda number=number: rank_of(f"hung{number}", 0) is None, 40)
        finally:
            kill_all(f"hung{number}")
            _, told = running.communicate(timeout=30)
        assert told.count(f"error: {said}") == 1, told


def test_running_out_of_memory_names_the_rank_and_the_table(runs, clicks):
    rows = ",".join(["20000"] * 25 + ["900000000"])
    words = ("--model.num_embeddings", rows, "--sharding.types", "table_wise", "--sharding.hbm_gib", "200")
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({12 << 30},) * 2)"
    _, script, *rest = map(str, command(runs, clicks, 1, "large", *words))
    code = (
        f"{limit}; import runpy, sys; sys.argv = {[script, *rest]!r}; runpy.run_path({script!r}, run_name='__main__')"
    )
    done = run_command("python", "-c", code, folder=ROOT)
    assert done.returncode == 1, done.stderr
    assert "rank 0 ran out of memory" in done.stderr and "the largest t_C26 with 30.2 GiB" in done.stderr


def test_a_loss_that_is_not_finite_stops_with_its_step_and_rank(runs, clicks):
    words = ("--train.learning_rate", "1e30", "--optimizer.dense", "sgd", "--optimizer.sparse", "sgd")
    done = train(runs, clicks, 2, "diverged", "--checkpoint.every", "1", *words)
    assert done.returncode == 1
    assert "the training loss is not finite at step 2 on rank 0: the run has diverged" in done.stderr
    assert checkpoints(runs, "diverged") == ["step_000000001"]


def test_more_ranks_and_another_plan(runs, clicks, whole):
    """Halfway from one rank with replicated tables to two with rows, and on to three with whole tables."""
    for ranks, steps, kind in ((1, 7, "data_parallel"), (2, 13, "row_wise"), (3, STEPS, "table_wise")):
        words = ("--sharding.types", kind, "--train.resume", "auto", "--train.max_steps", str(steps))
        done = train(runs, clicks, ranks, "moved", *words)
        assert done.returncode == 0, done.stderr
    assert "was saved with ranks 2, now it is 3" in done.stdout
    moved, fixed = state(runs, "moved"), state(runs, whole(1))
    assert max((moved[key] - fixed[key]).abs().max().item() for key in fixed) < 1e-5
    first, last = train_lines(runs, "moved"), train_lines(runs, whole(1))
    assert first[-1][1] == last[-1][1]  # rows trained on


def test_another_dropout_is_told(runs, clicks):
    assert train(runs, clicks, 1, "dropout", "--model.dropout", "0.25", "--train.max_steps", "4").returncode == 0
    done = train(runs, clicks, 1, "dropout", "--train.resume", "auto", "--model.dropout", "0.5")
    assert done.returncode == 0, done.stderr
    assert "was saved with model.dropout 0.25, now it is 0.5" in done.stdout
    assert done.stdout.count("was saved with") == 2  # this and train.max_steps


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(runs, clicks, whole):
    words = ("--checkpoint.every", "5", "--train.max_steps", "12", "--checkpoint.keep", "2")
    assert train(runs, clicks, 1, "damaged", *words).returncode == 0
    assert checkpoints(runs, "damaged") == ["step_000000011", "step_000000012"]  # scored after the epoch, the last
    part = next((runs / "damaged" / "checkpoints" / "step_000000012").glob("*.distcp"))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    (runs / "damaged" / "checkpoints" / ".step_000000013.tmp").mkdir()
    done = train(runs, clicks, 1, "damaged", "--train.resume", "auto", "--checkpoint.every", "12")
    assert done.returncode == 0, done.stderr
    assert damage_of(runs / "damaged" / "checkpoints" / "step_000000012") is None  # written anew
    assert f"step_000000012: file {part.name} is damaged; using the one before it" in done.stdout
    assert "continuing after step 11 " in done.stdout
    assert_bit_equal(runs, "damaged", whole(1))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--train.batch_size", "50"), "was saved with train.batch_size 100, this run has 50"),
        (("--train.seed", "5"), "was saved with train.seed 0, this run has 5"),
        (("--optimizer.sparse", "sgd"), "was saved with optimizer.sparse 'rowwise_adagrad', this run has 'sgd'"),
        (("--model.top_mlp", "16,1,24,1"), "has no model.model.top_mlp"),
        (("--sharding.types", "column_wise"), "row-wise Adagrad keeps a moment for each part of a row that is cut"),
    ],
)
def test_a_run_that_cannot_be_continued(runs, clicks, whole, words, said):
    assert_refused(train(runs, clicks, 1, whole(1), "--train.resume", "auto", *words), said)


def test_resume_needs_a_name(runs, clicks):
    assert_refused(train(runs, clicks, 1, "", "--train.resume", "auto"), "train.resume auto continues the run that")


def test_a_finished_run_is_only_scored_again(runs, clicks, whole):
    before = (runs / whole(1) / "result.json").read_text()
    done = train(runs, clicks, 1, whole(1), "--train.resume", "auto")
    assert done.returncode == 0, done.stderr
    after = json.loads((runs / whole(1) / "result.json").read_text())
    assert after["auc"] == json.loads(before)["auc"]


def test_a_place_that_cannot_be_written_ends_the_run_in_one_line(runs, clicks):
    """A file lies where the folder of checkpoints should be: as root, permissions would not stop it."""
    running = started(runs, clicks, 2, "full", "--train.max_steps", "100000", "--train.epochs", "9000")
    wait_for(lambda: (runs / "full" / "metrics.jsonl").exists() or running.poll() is not None)
    (runs / "full" / "checkpoints").touch()
    running.send_signal(signal.SIGTERM)
    _, told = running.communicate(timeout=60)
    assert running.returncode != 0
    assert told.count("the checkpoint cannot be written: ") == 1

"""`dlrm-dist plan` and training by a plan, as a user runs them."""

import json
import socket

import pytest
from torch.distributed import TCPStore

from tests.helpers import ROOT, assert_refused, run_command

COMPLETE = {"DLRM_DIST_MOST_HOSTS": "1", "TORCHELASTIC_RUN_ID": "another"}
PLANS = sorted((ROOT / "sharding_plans").glob("*.plan.json"))
MODEL = ("--model.num_embeddings", "90000,80000,3", "--data.path", "nowhere")


def dlrm_dist(folder, *words):
    return run_command("dlrm-dist", *words, folder=folder)


def made(folder, name, cluster, *words):
    path = folder / name
    done = dlrm_dist(folder, "plan", "make", *MODEL, "--cluster", cluster, "--out", path, *words)
    assert done.returncode == 0, done.stderr
    assert f"{path}: planned for" in done.stdout
    assert done.stderr == ""
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("plans")


@pytest.fixture(scope="module")
def plan(folder):
    return made(folder, "a_1x2_h100.plan.json", "h100:1x2")


def test_make_is_repeatable(folder, plan):
    assert made(folder, "b.plan.json", "h100:1x2").read_bytes() == plan.read_bytes()


def test_explain_in_its_forms(folder, plan):
    text = dlrm_dist(folder, "plan", "explain", plan)
    assert text.returncode == 0
    assert "t_C1" in text.stdout
    both = dlrm_dist(folder, "plan", "explain", plan, "--json", "--html", "p.html")
    assert json.loads(both.stdout)["plan"]["ranks"] == 2
    assert (folder / "p.html").read_text().lstrip().startswith("<!doctype html>")


def test_diff(folder, plan):
    other = made(folder, "c.plan.json", "h100:1x4")
    done = dlrm_dist(folder, "plan", "diff", plan, other)
    assert done.returncode == 0
    assert "ranks: 2 -> 4" in done.stdout
    assert json.loads(dlrm_dist(folder, "plan", "diff", plan, other, "--json").stdout)["ranks"] == {"old": 2, "new": 4}


def test_check(folder, plan):
    good = dlrm_dist(folder, "plan", "check", plan, *MODEL)
    assert (good.returncode, good.stderr) == (0, "")
    stale = dlrm_dist(folder, "plan", "check", plan, *MODEL, "--train.batch_size", "64", "--optimizer.sparse", "sgd")
    assert stale.returncode == 1
    assert stale.stdout.splitlines() == [
        "the tables' optimizer is rowwise_adagrad in the plan, sgd in the config",
        "stale: batch size 2048 in the plan, 64 in the config",
    ]


def test_check_of_a_plan_with_a_missing_table_and_of_another_version(folder, plan):
    values = json.loads(plan.read_text())
    for module in values["modules"].values():
        del module["t_C2"]
    broken = folder / "broken.plan.json"
    broken.write_text(json.dumps(values))
    done = dlrm_dist(folder, "plan", "check", broken)
    assert (done.returncode, done.stdout) == (1, "table t_C2 has no place in the plan\n")
    broken.write_text(json.dumps({**values, "version": 99}))
    done = dlrm_dist(folder, "plan", "check", broken)
    assert done.returncode == 1
    assert "version 99" in done.stdout


def test_fit(folder):
    done = dlrm_dist(folder, "plan", "fit", *MODEL, "--gpu", "l4", "--most", "16")
    assert done.returncode == 0
    assert "smallest that holds the tables: l4:1x1" in done.stdout
    sizes = [line.split()[1] for line in done.stdout.splitlines()[1:-1]]
    assert sizes == ["1x1", "1x2", "1x4", "1x8", "2x8"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("make", *MODEL, "--cluster", "h10", "--out", "x"), "did you mean h100?"),
        (("make", *MODEL, "--cluster", "h100", "--constraints", "none", "--out", "x"), "known constraints are"),
        (("make", *MODEL, "--cluster", "h100", "--out", "no/folder/x"), "cannot be written"),
        (("make", *MODEL, "--cluster", "h100"), "--out"),
        (("make", "--cluster", "h100", "--out", "x", "--data.path", "nowhere"), "model.num_embeddings is not given"),
        (("make", *MODEL, "--modle.name", "x", "--cluster", "h100", "--out", "x"), "did you mean model.name?"),
        (("explain", "none.plan.json"), "cannot be read"),
        (("explain", "a_1x2_h100.plan.json", "--measured", "none"), "is not the folder of a run"),
        (("explain", "a_1x2_h100.plan.json", "--jsn"), "--jsn"),
        (("diff", "a_1x2_h100.plan.json", "none"), "cannot be read"),
        (("check", "none"), "cannot be read"),
        (("fit", *MODEL, "--gpu", "v100"), "no cluster 'v100'"),
    ],
)
def test_mistakes_are_one_line(folder, plan, words, said):
    assert_refused(dlrm_dist(folder, "plan", *words), said)
    assert not (folder / "x").exists()


def test_the_plans_that_are_promised_are_shipped():
    names = {path.name for path in PLANS}
    assert {f"mlperf_dcnv2_{size}.plan.json" for size in ("1x1_h200", "1x8_h100", "16x8_h100")} <= names
    assert "dlrm_kaggle_1x8_h100.plan.json" in names


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.name)
def test_shipped_plans_are_sound_and_up_to_date(path):
    model, size, hardware = path.name.removesuffix(".plan.json").rsplit("_", 2)
    config = f"launch/configs/{model}.toml"
    done = dlrm_dist(
        ROOT, "plan", "check", path, "--config", config, "--cluster", f"{hardware}:{size}", "--constraints", model
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def train(folder, data, *words, **environment):
    base = ("--data.path", data, "--train.batch_size", "256", "--train.max_steps", "3", "--run.folder", folder / "runs")
    return run_command(
        "torchrun", "--nproc_per_node", "2", "launch/train.py", *base, *words, folder=ROOT, **environment
    )


@pytest.fixture(scope="module")
def trained_plan(clicks, folder):
    """A plan for the data of the tests on two CPU ranks, by columns and rows, which no run would choose."""
    path = folder / "clicks_1x2_cpu.plan.json"
    words = ("--data.path", clicks, "--train.batch_size", "256", "--cluster", "cpu:1x2", "--out", path)
    (folder / "mine.toml").write_text(
        '[[table]]\npattern = "t_C1"\nsharding_types = ["column_wise"]\n'
        '[[table]]\npattern = "*"\nsharding_types = ["data_parallel"]\n'
    )
    done = dlrm_dist(folder, "plan", "make", *words, "--constraints", "mine.toml")
    assert done.returncode == 0, done.stderr
    return path


def test_training_by_a_plan(clicks, folder, trained_plan):
    done = train(folder, clicks, "--sharding.plan", trained_plan, "--run.name", "planned")
    assert done.returncode == 0, done.stderr
    assert (folder / "runs" / "planned" / "plan.json").read_text() == trained_plan.read_text()
    measured = dlrm_dist(folder, "plan", "explain", trained_plan, "--measured", folder / "runs" / "planned")
    assert "of serial" in measured.stdout, measured.stderr


def test_a_plan_for_other_ranks_is_refused_with_the_command(clicks, folder):
    path = folder / "wide.plan.json"
    words = ("--data.path", clicks, "--cluster", "cpu:1x4", "--out", path)
    assert dlrm_dist(folder, "plan", "make", *words).returncode == 0
    done = train(folder, clicks, "--sharding.plan", path)
    assert done.returncode != 0
    assert "is for 4 ranks (1x4), this run has 2" in done.stderr
    assert "dlrm-dist plan make --config CONFIG --cluster cpu:1x2" in done.stderr


def test_a_plan_for_another_model_is_refused_with_the_command(clicks, folder, plan):
    done = run_command(
        "python", "launch/train.py", "--data.path", clicks, "--sharding.plan", plan, folder=ROOT, WORLD_SIZE="1"
    )
    assert_refused(done, "dlrm-dist plan make --config CONFIG --cluster")


def test_a_restart_on_other_ranks_takes_the_plan_of_that_size(clicks, folder, trained_plan):
    """The launcher says by an environment variable that it has restarted the ranks."""
    path = folder / "clicks_1x1_cpu.plan.json"
    words = ("--data.path", clicks, "--train.batch_size", "256", "--cluster", "cpu:1x1", "--out", path)
    arguments = ("--data.path", clicks, "--train.batch_size", "256", "--train.max_steps", "2")
    run = ("--run.folder", folder / "runs", "--sharding.plan", trained_plan)
    environment = {"TORCHELASTIC_RESTART_COUNT": "1"}
    anew = run_command("python", "launch/train.py", *arguments, *run, folder=ROOT, **environment)
    assert anew.returncode == 0, anew.stderr
    assert "restarted on 1x1 ranks, the plan was for 1x2: using a new plan under its constraints" in anew.stdout
    assert "tables moved" in anew.stdout
    assert dlrm_dist(folder, "plan", "make", *words).returncode == 0
    shipped = run_command("python", "launch/train.py", *arguments, *run, folder=ROOT, **environment)
    assert "using the plan file of that size beside" in shipped.stdout, shipped.stderr


def test_while_a_host_is_late_its_ranks_are_planned_without(clicks, folder, trained_plan):
    """The job may have more hosts than have come: it begins, and starts anew when they do."""
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    of_hosts = {"DLRM_DIST_JOB_STORE": f"localhost:{store.port}", "TORCHELASTIC_RUN_ID": "job"}
    of_hosts["DLRM_DIST_MOST_HOSTS"] = "2"
    with socket.create_server(("localhost", 0)) as listener:
        port = listener.getsockname()[1]
    arguments = ("--data.path", clicks, "--train.batch_size", "256", "--train.max_steps", "2")
    run = ("--run.folder", folder / "late", "--sharding.plan", trained_plan)
    launcher = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), **of_hosts}
    done = run_command("python", "launch/train.py", *arguments, *run, folder=ROOT, **launcher)
    assert done.returncode == 0, done.stderr
    assert "began on 1x1 ranks, the plan was for 1x2: using " in done.stdout
    all_there = run_command("python", "launch/train.py", *arguments, *run, folder=ROOT, **launcher | COMPLETE)
    assert_refused(all_there, "is for 2 ranks (1x2), this run has 1")

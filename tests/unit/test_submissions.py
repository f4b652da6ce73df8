"""Jobs of the `dlrm` components: what would be sent to each scheduler, and what is refused before; nothing is sent."""

import os
from pathlib import Path

import pytest
from torchx.runner import get_runner
from torchx.specs import finder
from torchx.specs.builders import materialize_appdef

from dlrm_dist import cores
from launch import submission
from tests import golden
from tests.golden import CASES, IMAGE
from tests.helpers import ROOT, numbered_dataset

# torchx's linter still names ast.Str, which Python 3.12 warns of.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torchx.*")
H100 = ["--cluster", "h100:2x8"]
CPU = ["--runtime.device", "cpu"]
PLAN = str(ROOT / "sharding_plans/mlperf_dcnv2_1x8_h100.plan.json")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(finder, "_components", golden._components())
    return tmp_path


@pytest.fixture
def all_packages(monkeypatch):
    """As if each scheduler's package were installed: components do not import it."""
    monkeypatch.setattr(submission, "find_spec", lambda name: name)


def role(*words, scheduler="slurm", component="dlrm.train"):
    """The one role of what a component makes, for a scheduler."""
    call = submission.Submission(scheduler, "", {"queue": "default"})
    component = finder.get_component(component)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(submission, "at_hand", lambda: call)
        (only,) = materialize_appdef(component.fn, list(words)).roles
    return only


def asked(*words, **options):
    """Cores, GPUs and GiB of a host."""
    resource = role(*words, **options).resource
    return resource.cpu, resource.gpu, resource.memMB / 1024


def refusal(capsys, *words, **options):
    with pytest.raises(SystemExit) as stop:
        role(*words, **options)
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: ")
    return err


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_sent_is_what_was_reviewed(case):
    if case.lacks:
        pytest.skip(f"the package {case.lacks} is not installed")
    assert golden.render(case) == case.file.read_text(), "if that is meant: python -m tests.golden"


def test_each_expected_request_has_a_case():
    assert {path.name for path in golden.FOLDER.iterdir() if path.suffix in (".txt", ".yaml")} == {
        case.file.name for case in CASES
    }


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([*H100], (64, 8, 8 * 238)),
        (["--cluster", "h100", "-j", "2x4"], (32, 4, 4 * 238)),
        ([*H100, "--cpu", "96", "--memMB", "102400"], (96, 8, 100)),
        (["--", *CPU], (2, 0, 24)),
        (["-j", "1x4", "--", *CPU], (4, 0, 48)),
        (["-j", "1x4", "--", *CPU, "--runtime.threads", "3"], (12, 0, 48)),
        (["--", "--sharding.cluster", "l4"], (64, 8, 8 * 64)),
        (["--cluster", "h200:1x2", "--", "--runtime.threads", "12"], (24, 2, 2 * 238)),
        (["-j", "1x2", "--gpu", "2", "--memMB", "2048"], (16, 2, 2)),
        (["-j", "1x2", "--gpu", "0", "--memMB", "2048"], (2, 0, 2)),
        (["-j", "2x8", "-h", "aws_p4d.24xlarge"], (96, 8, 1152)),
    ],
)
def test_hosts_are_asked_for_by_the_config(words, expected):
    assert asked(*words) == pytest.approx(expected, rel=0.05 if "-h" in words else 0)


@pytest.mark.parametrize(
    ("words", "hosts", "option"),
    [
        ([*H100], (2, 2), "--nnodes 2 --nproc_per_node 8"),
        (["-j", "1:2x8", "--cluster", "h100"], (1, 2), "--nnodes 1:2 --nproc_per_node 8"),
        (["--", *CPU], (1, 1), "--nnodes 1 --nproc_per_node 2"),
        (["--", "--sharding.cluster", "a100:16x8"], (16, 16), "--nnodes 16 --nproc_per_node 8"),
    ],
)
def test_size_is_that_of_j_or_the_cluster(words, hosts, option):
    found = role(*words)
    assert (found.min_replicas, found.num_replicas) == hosts
    assert f"{option} " in found.args[1]


def test_size_is_that_of_the_plan(all_packages):
    words = ["--config", str(ROOT / "launch/configs/mlperf_dcnv2.toml"), "--sharding.plan", PLAN]
    found = role(*IMAGE, "--", *words, "--data.path", "/none", scheduler="kubernetes")
    assert "--nnodes 1 --nproc_per_node 8 " in found.args[1]
    assert (found.resource.gpu, found.image) == (8, IMAGE[1])


def test_options_reach_the_launcher():
    words = [*H100, "--max_retries", "3", "--rdzv_endpoint", "store:1234", "--rdzv_conf", "join_timeout=9"]
    found = role(*words, "--interface", "ib0", "--log_dir", "/logs", "--env", "A=1")
    assert found.args[1].startswith("python -m launch.elastic --max-restarts 3 ")
    first, second = found.args[1].split("--rdzv_endpoint ")[1:]
    assert "29500" in first and second.startswith("store:1234 --rdzv_conf join_timeout=9 -m launch.train")
    wanted = {"NCCL_SOCKET_IFNAME": "ib0", "GLOO_SOCKET_IFNAME": "ib0", "PET_LOG_DIR": "/logs", "A": "1"}
    assert wanted.items() <= found.env.items()
    assert found.env["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "120"


def test_torchrun_takes_the_last_endpoint():
    from torch.distributed import run

    found = role(*H100, "--rdzv_endpoint", "store:1234")
    words = found.args[1].replace("''", "none").split()[3:]
    assert run.parse_args(words).rdzv_endpoint == "store:1234"


def test_this_machine_is_asked_for_all_it_has():
    found = role("--", *CPU, scheduler="local_cwd")
    assert found.resource.cpu == cores.usable()
    assert (found.resource.gpu, found.resource.memMB > 100) == (0, True)


def test_config_is_an_option_too():
    file = str(ROOT / "launch/configs/demo.toml")
    before, behind = ([*H100, "--config", file], [*H100, "--", "--config", file])
    assert role(*before) == role(*behind)
    assert role(*before).args[1].endswith(f"-m launch.train --config {file}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--cluster", "cpu:2x2"],
            "--cluster cpu:2x2 is of 2 hosts, and -s local_cwd starts all ranks on this machine",
        ),
        (["-j", "1x2", "--cluster", "h100", "--", *CPU], "--cluster h100 is of cuda devices"),
    ],
)
def test_this_machine_is_not_taken_for_another(capsys, words, said):
    assert said in refusal(capsys, *words, scheduler="local_cwd")


def test_prepare_is_one_process_with_the_memory_it_keeps_to():
    words = ["a.txt", "out", "--format", "kaggle", "--memory", "4GB"]
    found = role(*words, component="dlrm.prepare")
    assert (found.entrypoint, found.args, found.num_replicas) == ("dlrm-dist", ["prepare", *words], 1)
    assert (found.resource.cpu, found.resource.gpu) == (8, 0)
    assert 4e9 / 2**20 + 1000 < found.resource.memMB < 4e9 / 2**20 + 1100
    assert found.env["OMP_NUM_THREADS"] == "8"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cluster", "h1000"], "no cluster 'h1000': did you mean h100?"),
        (["--cluster", "h100:2x16"], "a host of h100 has 8 devices, not 16"),
        ([*H100, "-j", "1x16"], "-j is 1x16, but a host by --cluster h100:2x8 has 8 devices; use at most 8"),
        (["-j", "two"], "-j is 'two'; allowed: "),
        ([], "nothing says -j, how many hosts and ranks on each; name the hosts: --cluster "),
        (["-j", "1x2"], "nothing says whether the ranks run on GPUs; name the hosts: --cluster "),
        (["-j", "1x2", "--gpu", "2"], "nothing says --memMB"),
        ([*H100, "--gpu", "4"], "4 GPUs a host are too few for -j 2x8"),
        ([*H100, "--", *CPU], "runtime.device is cpu, --cluster h100:2x8 is of cuda devices"),
        (["--gpu", "0", *H100], "--cluster h100:2x8 is of cuda devices, and the job asks for 0 GPUs a host"),
        (["--", "--sharding.plan", PLAN, "--runtime.device", "cpu"], "contradict each other"),
        (["-j", "2x4", "--", "--sharding.plan", PLAN], "-j is 2x4, but the plan is for 1x8; leave -j out"),
        (["-j", "2x8", "--", "--sharding.plan", PLAN], "-j is 2x8, but the plan is for 1x8; leave -j out"),
        ([*H100, "--cpu", "-1"], "--cpu is -1; allowed: 0 or more"),
        ([*H100, "--interface", "eth0,eth1"], "--interface is 'eth0,eth1'; allowed: one name"),
        ([*H100, "--interface", "eth0", "--env", "NCCL_SOCKET_IFNAME=ib0"], "exclude each other"),
        ([*H100, "--env", "A=1,2"], "slurm cuts variables at commas"),
        ([*H100, "--rdzv_endpoint", "store"], "--rdzv_endpoint is 'store'; allowed: HOST:PORT"),
        ([*H100, "--image", "a"], "--image a has no effect with -s slurm"),
        ([*H100, "--mounts", "x=1"], "unknown mount option x"),
        (["-h", "abacus", "-j", "1x2"], "No named resource found for `abacus`"),
        ([*H100, "--", "--train.batch_size", "15"], "train.batch_size is 15, the global batch of 16 ranks"),
        (
            [*H100, "--", "--train.batchsize", "15"],
            "unknown config key train.batchsize: did you mean train.batch_size?",
        ),
        ([*H100, "--", "--config", "none.toml"], "--config none.toml: cannot be read"),
        ([*H100, "--", "--data.path", "none"], "none"),
        (["--config", "a.toml", *H100, "--", "--config", "b.toml"], "--config a.toml and --config b.toml: give one"),
    ],
)
def test_mistakes_are_one_line(capsys, words, said):
    assert said in refusal(capsys, *words)


@pytest.mark.parametrize(
    ("component", "words", "said"),
    [
        ("dlrm.prepare", ["a.txt", "out"], "--format"),
        ("dlrm.prepare", ["a.txt", "out", "--format", "kaggle", "--memory", "some"], "--memory"),
        ("dlrm.evaluate", ["runs/none", "data"], "runs/none: is no run's folder"),
        ("dlrm.evaluate", ["runs/none"], "DATASET"),
    ],
)
def test_mistakes_in_the_arguments_of_other_verbs(capsys, component, words, said):
    assert said in refusal(capsys, *words, component=component)


def test_data_here_is_checked_and_data_elsewhere_is_named(folder, capsys, all_packages):
    numbered_dataset(folder / "clicks", {"train": 50, "valid": 3})
    assert "too few" in refusal(capsys, "-j", "1x4", "--", *CPU, "--data.path", "clicks")
    words = [*IMAGE, "-j", "1x4", "--", *CPU, "--data.path"]
    assert "too few" in refusal(capsys, *words, str(folder / "clicks"), scheduler="kubernetes")
    role(*words, "clicks", "--run.folder", "/runs", scheduler="kubernetes")
    assert capsys.readouterr().err == "note: not on this machine, and so not checked: data.path clicks\n"


def test_a_run_that_would_be_lost_with_its_container_is_named(capsys, all_packages):
    role(*IMAGE, *H100, scheduler="kubernetes")
    assert "note: run.folder runs is lost with the container" in capsys.readouterr().err


def test_files_of_the_image_alone_are_named(capsys, all_packages):
    files = ["--sharding.plan", "/plans/p.json", "--sharding.constraints", "/plans/c.toml"]
    found = role(*IMAGE, *H100, "--", *files, scheduler="aws_batch")
    assert "sharding.plan /plans/p.json, sharding.constraints /plans/c.toml, data.path" in capsys.readouterr().err
    assert found.args[1].endswith(" ".join(["-m launch.train", *files]))
    role(*IMAGE, *H100, "--", "--config", "/configs/a.toml", scheduler="kubernetes")
    assert capsys.readouterr().err.endswith("not checked: --config /configs/a.toml\n")


def submitted(scheduler, *words, workspace=None, queue="default"):
    cfg = {} if queue is None else {"queue": queue}
    with get_runner() as runner:
        runner.dryrun_component("dlrm.train", [*H100, *words], scheduler, cfg=cfg, workspace=workspace)


@pytest.mark.parametrize(
    ("scheduler", "words", "options", "said"),
    [
        ("kubernetes", [], {}, "-s kubernetes runs an image, and none is given"),
        ("aws_batch", [], {}, "-s aws_batch runs an image, and none is given"),
        ("kubernetes", IMAGE, {"queue": None}, "-s kubernetes needs a queue"),
        ("kubernetes", IMAGE, {"workspace": "file:///here"}, 'run the image as it is: --workspace ""'),
        (
            "local_docker",
            [],
            {},
            "ask for no hosts of -s local_docker; allowed: local_cwd, slurm, kubernetes, aws_batch",
        ),
    ],
)
def test_what_the_scheduler_needs_is_asked_of_the_runner_that_calls(
    capsys, monkeypatch, all_packages, scheduler, words, options, said
):
    monkeypatch.setattr(submission, "_docker_answers", lambda: False)
    with pytest.raises(SystemExit) as stop:
        submitted(scheduler, *words, **options)
    err = capsys.readouterr().err
    assert (stop.value.code, err.count("\n")) == (2, 1)
    assert said in err


def test_a_missing_package_is_named(capsys, monkeypatch):
    monkeypatch.setattr(submission, "find_spec", lambda name: None)
    assert "needs the Python package kubernetes" in refusal(capsys, *H100, *IMAGE, scheduler="kubernetes")


def test_slurm_without_sbatch_is_refused_unless_it_is_a_dry_run(capsys, monkeypatch, folder):
    submitted("slurm")
    assert "SRUN_CPUS_PER_TASK" not in os.environ
    with pytest.raises(SystemExit), get_runner() as runner:
        runner.run_component("dlrm.train", H100, "slurm")
    assert "-s slurm needs sbatch, which is not on PATH" in capsys.readouterr().err


def test_a_job_of_slurm_gets_the_cores_of_its_task(monkeypatch, folder):
    """srun takes one core for a task since 22.05, whatever sbatch was asked for, unless this variable says more."""
    sbatch = Path(folder, "sbatch")
    sbatch.write_text('#!/bin/sh\necho "$SRUN_CPUS_PER_TASK" > cores\necho 17\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("SRUN_CPUS_PER_TASK", "")
    with get_runner() as runner:
        assert runner.run_component("dlrm.train", H100, "slurm") == "slurm://torchx/17"
    assert Path("cores").read_text() == "64\n"

"""What the `dlrm` components refuse, and what they say of files that are elsewhere, before anything is sent."""

import pytest

from launch import submission
from tests.components.torchx_jobs import CPU, H100, PLAN, refusal, role
from tests.golden import IMAGE
from tests.helpers import numbered_dataset

INT8 = ["--sharding.comm_precision", "int8", "--sharding.types", "table_wise"]
MANAGED = ["--model.managed_collisions", "C1"]


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
        ([*H100, "--rdzv_endpoint", "store:99999"], "--rdzv_endpoint is 'store:99999'; allowed: HOST:PORT"),
        ([*H100, "--rdzv_port", "0"], "--rdzv_port is 0; allowed: 1 to 65535"),
        ([*H100, "--rdzv_conf", "x"], "--rdzv_conf is 'x'; allowed: key=value"),
        ([*H100, "--image", "a"], "--image a has no effect with -s slurm"),
        ([*H100, "--log_dir", "/logs/a,b"], "slurm cuts variables at commas"),
        ([*H100, "--mounts", "x=1"], "unknown mount option x"),
        ([*H100, "--mounts", "type=volume,src=a"], "--mounts lacks dst; allowed: type=volume,src=NAME,dst=/PATH"),
        (["-h", "abacus", "-j", "1x2"], "No named resource found for `abacus`"),
        ([*H100, "--", "--train.batch_size", "15"], "train.batch_size is 15, the global batch of 16 ranks"),
        (
            [*H100, "--", "--train.batchsize", "15"],
            "unknown config key train.batchsize: did you mean train.batch_size?",
        ),
        ([*H100, "--", "--config", "none.toml"], "--config none.toml: cannot be read"),
        ([*H100, "--", "--data.path", "none"], "none"),
        (
            ["--cluster", "h100", "-j", "2:3x1", "--", *INT8, "--train.batch_size", "24", "--eval.batch_size", "24"],
            "when hosts are lost: sharding.comm_precision is int8, which needs a multiple of 8 rows on a rank",
        ),
        (
            ["--cluster", "h100", "-j", "1:2x8", "--", *MANAGED],
            "model.managed_collisions binds ids to the number of ranks",
        ),
        (["--config", "a.toml", *H100, "--", "--config", "b.toml"], "--config a.toml and --config b.toml: give one"),
    ],
)
def test_mistakes_are_one_line(capsys, words, said):
    assert said in refusal(capsys, *words)


@pytest.mark.parametrize(
    ("component", "words", "said"),
    [
        ("prepare", ["a.txt", "out"], "--format"),
        ("prepare", ["a.txt", "out", "--format", "kaggle", "--memory", "some"], "--memory"),
        ("evaluate", ["runs/none", "data"], "runs/none: is no run's folder"),
        ("evaluate", ["runs/none"], "DATASET"),
        ("doctor", [*H100, "--", "--strage", "runs"], "unrecognized arguments: --strage"),
        ("doctor", [*H100, "--", "--ranks", "3"], "--ranks is 3, but -j 2x8 starts 16; leave --ranks out"),
        ("doctor", [*H100, "--", "--runtime.threads", "none"], "runtime.threads"),
    ],
)
def test_mistakes_in_the_arguments_of_other_verbs(capsys, component, words, said):
    assert said in refusal(capsys, *words, component=component)


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


def test_a_missing_package_is_named(capsys, monkeypatch):
    monkeypatch.setattr(submission, "find_spec", lambda name: None)
    assert "needs the Python package kubernetes" in refusal(capsys, *H100, *IMAGE, scheduler="kubernetes")


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

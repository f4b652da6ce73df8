"""What the `dlrm` components ask a scheduler for."""

import re
from dataclasses import fields

import pytest
from torchx.specs import RetryPolicy

from dlrm_dist import cores
from launch import options
from tests.components.torchx_jobs import CPU, H100, PLAN, role
from tests.golden import IMAGE
from tests.helpers import ROOT


def asked(*words, **options):
    """Cores, GPUs and GiB of a host."""
    resource = role(*words, **options).resource
    return resource.cpu, resource.gpu, resource.memMB / 1024


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


@pytest.mark.parametrize(("retries", "restarts"), [([], 3), (["--max_retries", "9"], 9)])
def test_a_job_that_may_lose_hosts_is_restarted_for_the_others_alone(retries, restarts):
    found = role("-j", "1:2x8", "--cluster", "h100", *retries)
    assert f"--max-restarts {restarts} " in found.args[1] and found.retry_policy is RetryPolicy.REPLICA
    assert "--max-restarts" not in role("-j", "2x8", "--cluster", "h100").args[1]


def test_options_reach_the_launcher():
    words = [*H100, "--max_retries", "3", "--rdzv_endpoint", "store:1234", "--rdzv_conf", "join_timeout=9"]
    found = role(*words, "--interface", "ib0", "--log_dir", "/logs", "--env", "A=1")
    assert found.args[1].startswith("python -m launch.elastic --max-restarts 3 ")
    first, second = found.args[1].split("--rdzv_endpoint ")[1:]
    assert "29500" in first and second.startswith(
        "store:1234 --rdzv_id $SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0} --rdzv_conf join_timeout=9 -m launch.train"
    )
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


def test_prepare_is_one_process_with_the_memory_it_keeps_to():
    words = ["a.txt", "out", "--format", "kaggle", "--memory", "4GB"]
    found = role(*words, component="prepare")
    assert (found.entrypoint, found.args, found.num_replicas) == ("dlrm-dist", ["prepare", *words], 1)
    assert (found.resource.cpu, found.resource.gpu) == (8, 0)
    assert 4e9 / 2**20 + 1000 < found.resource.memMB < 4e9 / 2**20 + 1100
    assert found.env["OMP_NUM_THREADS"] == "8"


def test_options_that_the_readme_names_are_there():
    text = (ROOT / "launch/README.md").read_text().partition("## On a cluster")[2].partition("## Logs")[0]
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `--")]
    named = {word for row in rows for word in re.findall(r"--(\w+)", row)}
    known = {each.name for each in fields(options.TrainOptions)}
    assert len(named) == 7
    assert named <= known
    assert {"image", "cluster", "mounts", "config", "gpu", "cpu", "memMB"} <= set(re.findall(r"--(\w+)", text)) & known

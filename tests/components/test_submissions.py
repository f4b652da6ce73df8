"""What torchx's own runner makes of the components: dry runs for each scheduler; nothing is sent."""

import os
from pathlib import Path

import pytest
from torchx.runner import get_runner
from torchx.specs import finder

from launch import submission
from tests import golden
from tests.components.torchx_jobs import H100
from tests.golden import CASES, IMAGE

# torchx's linter still names ast.Str, which Python 3.12 warns of.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torchx.*")


@pytest.fixture(autouse=True)
def components(folder, monkeypatch):
    monkeypatch.setattr(finder, "_components", golden.components())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_sent_is_what_was_reviewed(case):
    if case.lacks:
        pytest.skip(f"the package {case.lacks} is not installed")
    assert golden.render(case) == case.file.read_text(), "if that is meant: python -m tests.golden"


def test_each_expected_request_has_a_case():
    assert {path.name for path in golden.FOLDER.iterdir() if path.suffix in (".txt", ".yaml")} == {
        case.file.name for case in CASES
    }


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

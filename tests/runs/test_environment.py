"""The set-up's decisions; nothing is installed."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from dlrm_dist.packages import mismatch
from launch import environment

PYPROJECT = tomllib.loads((environment.ROOT / "pyproject.toml").read_text())
EXTRAS = PYPROJECT["project"]["optional-dependencies"]


def pin(extra, package):
    (version,) = [line.partition("==")[2] for line in EXTRAS[extra] if line.startswith(f"{package}==")]
    return version


def executable(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("name", ["launch/environment.py", "Makefile", ".ci/run"])
def test_pins_are_in_pyproject_only(name):
    text = (environment.ROOT / name).read_text()
    pins = {line.partition("==")[2] for lines in EXTRAS.values() for line in lines}
    assert [version for version in pins if version in text] == []


def test_stub_takes_the_pin_of_the_cpu_extra():
    stub = tomllib.loads(environment.stub_pyproject(PYPROJECT))
    version = pin("cpu", "fbgemm-gpu-cpu")
    project = {"name": "fbgemm-gpu", "version": version, "dependencies": [f"fbgemm-gpu-cpu=={version}"]}
    assert stub["project"] == project
    assert stub["tool"]["setuptools"]["packages"] == []
    assert stub["build-system"] == PYPROJECT["build-system"]


@pytest.mark.parametrize(("extra", "fbgemm"), [("cpu", "fbgemm-gpu-cpu"), ("cuda", "fbgemm-gpu")])
def test_pinned_pairs_belong_together(extra, fbgemm):
    assert mismatch(pin(extra, "torch"), pin(extra, fbgemm)) is None


def test_mismatch_names_both_and_the_pairs():
    reason = mismatch("2.13.0+cpu", "1.7.0")
    assert "fbgemm_gpu 1.7.0 and torch 2.13.0+cpu do not belong together" in reason
    assert "fbgemm 1.8 with torch 2.13" in reason


def test_pythons_are_those_of_pyproject():
    assert PYPROJECT["project"]["requires-python"] == ">=3.11,<3.13"
    assert set(environment.PYTHONS) == {(3, 11), (3, 12)}


def test_unknown_build_is_one_line_and_exit_code_2():
    script = str(environment.ROOT / "launch" / "environment.py")
    done = subprocess.run(
        [sys.executable, script], env={**os.environ, "DLRM_DIST_BUILD": "tpu"}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: DLRM_DIST_BUILD is 'tpu'; allowed: cpu, cuda, or unset it\n"


@pytest.mark.parametrize(
    ("answer", "build"),
    [("echo 'GPU 0: H100 (UUID: x)'", "cuda"), ("echo 'No devices found'", "cpu"), ("exit 9", "cpu"), (None, "cpu")],
)
def test_build_follows_nvidia_smi(monkeypatch, tmp_path, answer, build):
    monkeypatch.delenv("DLRM_DIST_BUILD", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    if answer is not None:
        executable(tmp_path / "nvidia-smi", answer)
    assert environment.build_to_install() == build


def test_variable_wins_over_nvidia_smi(monkeypatch, tmp_path):
    executable(tmp_path / "nvidia-smi", "echo 'GPU 0: H100'")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DLRM_DIST_BUILD", "cpu")
    assert environment.build_to_install() == "cpu"


def test_a_python_that_does_not_run_is_passed_over(monkeypatch, tmp_path):
    executable(tmp_path / "old", "echo 3 9 True")
    executable(tmp_path / "python3.12", "echo not switched on >&2; exit 127")
    executable(tmp_path / "python3.11", "echo 3 11 True")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "old"))
    assert environment.base_python() == "python3.11"


@pytest.mark.parametrize(
    ("answer", "message"), [("echo 3 11 False", "apt install python3.11-venv"), ("echo 3 13 True", "does not fit")]
)
def test_no_python_that_fits(monkeypatch, tmp_path, answer, message):
    executable(tmp_path / "python", answer)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(environment.SetupError, match=message):
        environment.base_python()


@pytest.mark.parametrize(
    ("stamp", "begun", "anew"), [("cpu", False, False), ("cuda", False, True), ("cpu", True, True), (None, True, True)]
)
def test_only_a_finished_environment_of_the_same_build_is_kept(monkeypatch, tmp_path, stamp, begun, anew):
    venv = tmp_path / ".venv"
    for name, path in {"VENV": "", "PYTHON": "python", "STAMP": ".ready", "BEGUN": ".begun", "LOG": "log"}.items():
        monkeypatch.setattr(environment, name, venv / path)
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    venv.mkdir()
    (venv / "python").touch()
    if stamp:
        (venv / ".ready").write_text(f"{stamp}\n")
    if begun:
        (venv / ".begun").touch()
    calls = []
    done = subprocess.CompletedProcess([], 0, "", "")
    monkeypatch.setattr(subprocess, "run", lambda command, **_: calls.append(command) or done)
    environment.make_venv("cpu")
    assert bool(calls) is anew
    assert not (venv / ".ready").exists()
    assert (venv / ".begun").exists()


def test_failed_command_shows_the_end_of_its_log(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setattr(environment, "LOG", Path(tmp_path, "log"))
    lines = "; ".join(f"echo line{number}" for number in range(40))
    with pytest.raises(environment.SetupError, match="exit code 3"):
        environment.logged(["sh", "-c", f"{lines}; exit 3"], "installing")
    shown = capsys.readouterr().err.splitlines()
    assert shown == [f"line{number}" for number in range(25, 40)]

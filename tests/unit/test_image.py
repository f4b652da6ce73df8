"""The Dockerfile, as far as it can be checked without building: what it copies is there, and is enough to start."""

import re
import shutil
import sys
import tomllib
from pathlib import Path

import pytest

from launch import environment
from tests.helpers import ROOT, run_command

LINES = [
    (line.partition(" ")[0], line.partition(" ")[2])
    for line in (ROOT / "launch/Dockerfile").read_text().splitlines()
    if line and not line.startswith("#")
]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def having(word):
    return [rest for instruction, rest in LINES if instruction == word]


def copies():
    """Each source, and where it goes."""
    for rest in having("COPY"):
        *sources, target = [word for word in rest.split() if not word.startswith("--")]
        for source in sources:
            yield source, Path(target, source) if target.endswith("/") else Path(target)


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """The working folder of the image, without .venv."""
    folder = tmp_path_factory.mktemp("image")
    for source, target in copies():
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        copy(ROOT / source, folder / target)
    return folder


def test_instructions_are_those_of_dockerfiles():
    assert {instruction for instruction, _ in LINES} == {"ARG", "FROM", "ENV", "RUN", "USER", "WORKDIR", "COPY", "CMD"}
    assert LINES[0] == ("ARG", "PYTHON=3.12") and LINES[1][0] == "FROM"


def test_what_pyproject_names_is_copied(content):
    project = PYPROJECT["project"]
    for name in (project["readme"], *project["license-files"]):
        assert (content / name).is_file()
    for package in PYPROJECT["tool"]["setuptools"]["packages"]:
        assert (content / package.replace(".", "/") / "__init__.py").is_file()


def test_ranks_start_from_what_is_copied(content):
    words = ["launch/configs/demo.toml", "--sharding.plan", "sharding_plans/dlrm_kaggle_1x8_h100.plan.json"]
    code = f"""
import dlrm_dist, launch.elastic, launch.train, launch.evaluate
from dlrm_dist import config, preflight
config = config.load({["--config", *words]})
preflight.validate_config(config, 8, "cuda")
print(dlrm_dist.__file__)
"""
    done = run_command("python", "-c", code, folder=content, PYTHONPATH=str(content))
    assert done.stdout.strip() == str(content / "dlrm_dist/__init__.py"), done.stderr


def test_both_builds_can_be_made():
    assert "BUILD=cpu" in having("ARG")
    assert set(environment.BUILDS) == {"cpu", "cuda"} <= PYPROJECT["project"]["optional-dependencies"].keys()
    assert "DLRM_DIST_BUILD=${BUILD} python launch/environment.py" in having("RUN")
    python = tuple(map(int, having("ARG")[0].partition("=")[2].split(".")))
    assert python in environment.PYTHONS


def test_it_does_not_run_as_root_and_owns_its_folder():
    instructions = [instruction for instruction, _ in LINES]
    assert having("USER") == ["dlrm"]
    assert instructions.index("USER") < instructions.index("COPY")
    assert all(rest.startswith("--chown=dlrm:dlrm ") for rest in having("COPY"))


def test_programs_of_the_job_are_on_path():
    venv = Path(having("WORKDIR")[0], environment.VENV.name, "bin")
    assert any(rest.startswith(f"PATH={venv}:${{PATH}}") for rest in having("ENV"))
    assert {"python", "dlrm-dist"} <= {path.name for path in Path(sys.executable).parent.iterdir()}


def test_no_host_is_named():
    text = (ROOT / "launch/Dockerfile").read_text()
    assert not re.search(r"https?:|\w\.(io|com|org|net)\b", text)

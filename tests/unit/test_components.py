"""The torchx components: calls only, nothing is launched."""

import inspect
import sys
from pathlib import Path
from types import ModuleType

import pytest
from torchx.components import dist
from torchx.specs.finder import ModuleComponentsFinder, get_components

from dlrm_dist.errors import UserError
from launch import components

# torchx's linter still names ast.Str, which Python 3.12 warns of.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torchx.*")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    Path("job.py").touch()
    return tmp_path


@pytest.fixture
def checked(monkeypatch):
    """Replaces the pre-flight: records its calls, and fails them with the message in `error`, if any."""
    module = ModuleType("dlrm_dist.preflight")
    module.calls, module.error = [], None

    def check(script_args, world_size, local_world_size):
        module.calls.append((script_args, world_size, local_world_size))
        if module.error:
            raise UserError(module.error)
        return 45

    module.check = check
    monkeypatch.setitem(sys.modules, "dlrm_dist.preflight", module)
    return module


def error_line(capsys, *args, **options):
    with pytest.raises(SystemExit) as stop:
        components.ddp(*args, **options)
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


def test_positional_and_named_script_are_the_same():
    positional = components.ddp("job.py", "--rows", "3", j="1x2")
    assert positional == components.ddp("--rows", "3", script="job.py", j="1x2")
    assert positional.roles[0].args[1].endswith("--nproc_per_node 2 --tee 3 --role '' job.py --rows 3")


def test_module_keeps_all_arguments():
    assert components.ddp("job.py", m="json.tool").roles[0].args[1].endswith("-m json.tool job.py")


def test_only_the_threads_differ_from_torchx():
    ours, stock = components.ddp("job.py", j="2x4", gpu=1), dist.ddp(script="job.py", j="2x4", gpu=1)
    assert ours.roles[0].env.pop("OMP_NUM_THREADS") == "1"
    assert ours == stock


def test_training_runs_under_its_own_torchrun_with_its_grace_time(checked):
    role = components.ddp("--config", "a.toml", m="launch.train", j="1x2").roles[0]
    assert role.args[1].startswith("python -m launch.elastic --rdzv_backend ")
    assert role.env["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "45"


def test_retries_reach_torchrun():
    app = components.ddp("job.py", j="1x2", max_retries=3)
    assert app.roles[0].args[1].startswith("torchrun --max-restarts 3 --rdzv_backend ")
    assert app.roles[0].max_retries == 3


def test_threads_of_the_user_win(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert components.ddp("job.py").roles[0].env["OMP_NUM_THREADS"] == "5"
    given = {"OMP_NUM_THREADS": "7"}
    assert components.ddp("job.py", env=given).roles[0].env["OMP_NUM_THREADS"] == "7"
    assert given == {"OMP_NUM_THREADS": "7"}


def test_torchx_lists_its_own_components_and_ours():
    stock = {c.name for c in ModuleComponentsFinder("torchx.components", "").find() if not c.validation_errors}
    found = get_components()
    assert set(found) == stock | {"dlrm.train", "dlrm.evaluate", "dlrm.prepare", "dlrm.doctor"}
    assert (found["dist.ddp"].fn, found["dist.spmd"].fn) == (components.ddp, components.spmd)


@pytest.mark.parametrize("name", ["ddp", "spmd"])
def test_signature_is_torchxs(name):
    assert inspect.signature(getattr(components, name)) == inspect.signature(getattr(dist, name))


def test_help_says_where_the_script_goes():
    assert "the script, unless --script or -m names it" in components.ddp.__doc__


def test_torchrun_of_this_environment_comes_first_and_not_into_the_role(monkeypatch, tmp_path):
    folder = str(tmp_path / "bin")
    Path(folder).mkdir()
    Path(folder, "torchrun").touch()
    monkeypatch.setattr(sys, "executable", f"{folder}/python")
    app = components.ddp("job.py")
    components.ddp("job.py")
    assert components.os.environ["PATH"] == f"{folder}:/usr/bin:/bin"
    assert "PATH" not in app.roles[0].env


def test_missing_script(capsys):
    assert "no such script: none.py" in error_line(capsys, "none.py")
    assert "no such script: none.py" in error_line(capsys, script="none.py")


def test_no_script(capsys):
    assert "launch/train.py" in error_line(capsys)


def test_script_and_module(capsys):
    assert "exclude each other" in error_line(capsys, script="job.py", m="json.tool")


def test_unknown_resource_is_a_users_mistake_too(capsys):
    assert "No named resource found for `abacus`" in error_line(capsys, "job.py", h="abacus")


@pytest.mark.parametrize("j", ["two", "1x", "0x2", "1x0", "3:2x1", "-1x2", "1x2x3", ""])
def test_wrong_j(capsys, j):
    assert f"-j is {j!r}; allowed: " in error_line(capsys, "job.py", j=j)


@pytest.mark.parametrize(("j", "ranks"), [("3", (3, 3)), ("1x2", (2, 2)), ("2x4", (8, 4)), ("1:2x4", (8, 4))])
def test_training_is_checked_with_its_ranks_and_those_of_a_host(checked, monkeypatch, j, ranks):
    monkeypatch.setattr(components, "TRAIN_SCRIPT", Path("job.py").resolve())
    components.ddp("job.py", "--config", "a.toml", j=j)
    components.ddp("--config", "a.toml", m="launch.train", j=j)
    assert checked.calls == [(["--config", "a.toml"], *ranks)] * 2


def test_other_scripts_are_not_checked(checked):
    components.ddp("job.py", "--config", "a.toml")
    assert checked.calls == []


def test_mistake_found_by_the_check_is_one_line(checked, capsys):
    checked.error = "train.batch_size is -1; allowed: 1 or more"
    assert error_line(capsys, m="launch.train") == f"error: {checked.error}\n"

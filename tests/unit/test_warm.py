"""The Python that other tests run: what a program is told and what comes of it are as with a real one."""

import os
import signal
import subprocess
import sys
import time

import pytest

from dlrm_dist.local_ranks import python

TOLD = "import os, sys; print(sys.argv, sys.path[0], os.getcwd(), os.environ['MINE'], sys.stdin.read(), __name__)"
WARM = "import sys; print('torchrec' in sys.modules)"


def run(executable, *words, **options):
    return subprocess.run(
        [executable, *words], env={**os.environ, "MINE": "5"}, capture_output=True, text=True, timeout=60, **options
    )


@pytest.mark.parametrize("form", ["-c", "-m", "program"])
def test_it_is_told_what_a_real_one_is(form, tmp_path):
    (tmp_path / "told.py").write_text(TOLD)
    words = {"-c": ["-c", TOLD], "-m": ["-m", "told"], "program": ["-u", str(tmp_path / "told.py")]}[form]
    warm, real = (run(each, *words, "a", "-b", cwd=tmp_path, input="c") for each in (python(), sys.executable))
    assert (warm.stdout, warm.stderr, warm.returncode) == (real.stdout, real.stderr, 0)
    assert "'a', '-b'" in warm.stdout


@pytest.mark.parametrize(
    ("code", "ends"),
    [("import sys; sys.exit(3)", 3), ("import os; os._exit(75)", 75), ("1 / 0", 1)]
    + [(f"import os; os.kill(os.getpid(), {int(number)})", -number) for number in (signal.SIGKILL, signal.SIGTERM)],
)
def test_it_ends_as_a_real_one(code, ends):
    assert [run(each, "-c", code).returncode for each in (python(), sys.executable)] == [ends, ends]


def test_signals_reach_it():
    code = "import signal, sys; signal.signal(15, lambda *_: sys.exit(7)); print('here', flush=True); signal.pause()"
    with subprocess.Popen([python(), "-c", code], stdout=subprocess.PIPE) as running:
        running.stdout.readline()
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == 7


def test_killed_it_is_gone():
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    with subprocess.Popen([python(), "-c", code], stdout=subprocess.PIPE) as running:
        pid = int(running.stdout.readline())
        running.kill()
        end = time.monotonic() + 20
        with pytest.raises(ProcessLookupError):
            while time.monotonic() < end:
                os.kill(pid, 0)


def test_all_is_imported_unless_it_has_modules_of_its_own(tmp_path):
    assert run(python(), "-c", WARM).stdout == "True\n"
    (tmp_path / "torchrec.py").touch()
    done = subprocess.run(
        [python(), "-c", WARM], env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, timeout=60
    )
    assert done.stdout == b"False\n"

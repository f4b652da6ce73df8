"""Makes `.venv` in the checkout and installs the project there: `python3 launch/environment.py`, which `make` runs.

Standard library only, and syntax that older Pythons read too: they look for a Python that fits and hand over to it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".ready"  # written last: `make` starts over what has no stamp
BEGUN = VENV / ".begun"  # there while a set-up runs: one that was cut off leaves it behind
LOG = VENV / "setup.log"
LOG_TAIL_LINES = 15
BUILDS = ("cpu", "cuda")
PYTHONS = ((3, 12), (3, 11))


class SetupError(Exception):
    """One line for the user, and the exit code: 2 is a mistake in the call, 1 a set-up that failed."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def build_to_install() -> str:
    """Returns `cpu` or `cuda`: what DLRM_DIST_BUILD says, else `cuda` where nvidia-smi lists a GPU."""
    wanted = os.environ.get("DLRM_DIST_BUILD", "")
    if wanted in BUILDS:
        return wanted
    if wanted:
        raise SetupError(f"DLRM_DIST_BUILD is {wanted!r}; allowed: {', '.join(BUILDS)}, or unset it", code=2)
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "cpu"
    return "cuda" if re.search(r"^GPU \d+", listing, flags=re.MULTILINE) else "cpu"


def probe(python: str) -> tuple[tuple[int, int], bool] | None:
    """Returns the version of an interpreter and whether it can make environments with pip; None if it does not run."""
    code = "import sys, importlib.util as u; print(*sys.version_info[:2], u.find_spec('ensurepip') is not None)"
    try:
        answer = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):  # such as a pyenv shim of a version that is not switched on
        return None
    return (int(answer[0]), int(answer[1])), answer[2] == "True"


def base_python() -> str:
    """Returns the first interpreter that fits: the one running this, then python3.12 and python3.11 on PATH."""
    without_pip = ""
    for candidate in [sys.executable, *(f"python{major}.{minor}" for major, minor in PYTHONS)]:
        found = probe(candidate)
        if found is None or found[0] not in PYTHONS:
            continue
        if found[1]:
            return candidate
        without_pip = without_pip or f"python{found[0][0]}.{found[0][1]}"
    if without_pip:
        raise SetupError(f"{without_pip} has no ensurepip; on Debian or Ubuntu: apt install {without_pip}-venv")
    version = ".".join(str(part) for part in sys.version_info[:2])
    raise SetupError(f"Python {version} does not fit and no python3.12 or python3.11 on PATH runs; install one of them")


def stub_pyproject(pyproject: dict[str, Any]) -> str:
    """Returns the pyproject.toml of an empty package `fbgemm-gpu` that stands for the pinned `fbgemm-gpu-cpu`.

    torchrec requires `fbgemm-gpu`: the CUDA wheel, which would overwrite the folder that `fbgemm-gpu-cpu` installs.
    """
    pins = pyproject["project"]["optional-dependencies"]["cpu"]
    (version,) = [pin.partition("==")[2] for pin in pins if pin.startswith("fbgemm-gpu-cpu==")]
    requires = pyproject["build-system"]["requires"]
    return f"""\
[build-system]
requires = {requires}
build-backend = "setuptools.build_meta"

[project]
name = "fbgemm-gpu"
version = "{version}"
dependencies = ["fbgemm-gpu-cpu=={version}"]

[tool.setuptools]
packages = []
"""


def logged(command: list[str], note: str) -> None:
    """Runs a command with its output in the log; shows the time on a terminal, and the last lines if it fails."""
    print(f"{note}; log: {LOG.relative_to(ROOT)}", flush=True)
    begin = time.monotonic()
    with LOG.open("a") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                time.sleep(0.2)
                if sys.stdout.isatty():
                    print(f"\r  {time.monotonic() - begin:.0f} s ", end="", flush=True)
        finally:  # also when interrupted: nothing may write into .venv after this has ended
            process.terminate()
            process.wait()
    if sys.stdout.isatty():
        print("\r        \r", end="")
    if process.returncode:
        print(*LOG.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:], sep="\n", file=sys.stderr)
        raise SetupError(f"{note}: failed (exit code {process.returncode}); everything it said: {LOG}")


def make_venv(build: str) -> None:
    """Makes `.venv`, or keeps it if a finished set-up of the same build is only to be brought up to date."""
    other_build = STAMP.exists() and STAMP.read_text().strip() != build
    if BEGUN.exists() or other_build or not PYTHON.exists():
        print(f"making {VENV.relative_to(ROOT)} for the {build} build", flush=True)
        command = [sys.executable, "-m", "venv", "--clear", str(VENV)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = (done.stdout + done.stderr).split("\n")
            reason = " ".join(line.strip() for line in lines if line.strip())
            raise SetupError(f"python -m venv failed: {reason}")
    STAMP.unlink(missing_ok=True)
    BEGUN.touch()
    LOG.write_text("")


def install(build: str) -> None:
    """Installs the project with the build's pins; pip's own settings (PIP_INDEX_URL, ...) say where from."""
    import tomllib  # here, because an older Python that only hands over does not have it

    pip = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--no-input"]
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    with tempfile.TemporaryDirectory() as folder:
        # As constraints too: pip looks at the plain `torch` of the dependencies first and would fetch the newest.
        pins = Path(folder, "pins.txt")
        pins.write_text("\n".join(pyproject["project"]["optional-dependencies"][build]))
        packages = ["-c", str(pins), "-e", f".[{build},dev]"]
        if build == "cpu":
            Path(folder, "pyproject.toml").write_text(stub_pyproject(pyproject))
            packages.append(folder)
        logged([*pip, "install", "--progress-bar", "off", *packages], f"installing the {build} build")
    logged([*pip, "check"], "checking the installed packages against each other")


def report() -> None:
    """Runs inside `.venv`: prints which torch, fbgemm_gpu and torchrec it got, after using them."""
    from importlib.metadata import version

    from dlrm_dist.packages import fbgemm_version, mismatch

    fbgemm = fbgemm_version()
    reason = mismatch(version("torch"), fbgemm)
    if reason is not None:
        raise SetupError(f"{reason}; mend the pins in pyproject.toml")
    try:
        import fbgemm_gpu  # noqa: F401  (its import registers the operators)
        import torch

        offsets = torch.ops.fbgemm.asynchronous_complete_cumsum(torch.tensor([1, 2]))
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        first_line = (str(error).splitlines() or [repr(error)])[0]
        raise SetupError(f"fbgemm_gpu {fbgemm} does not run with torch {version('torch')}: {first_line}") from error
    if offsets.tolist() != [0, 1, 3]:
        raise SetupError(f"fbgemm_gpu {fbgemm} gives a wrong cumulative sum: {offsets.tolist()}")
    kind = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    print(f"ready: torch {torch.__version__} ({kind} build), fbgemm_gpu {fbgemm} runs with it, ", end="")
    print(f"torchrec {version('torchrec')}, Python {sys.version.split()[0]}")


def set_up() -> None:
    """Makes the environment, installs, checks, and only then writes the stamp."""
    build = build_to_install()
    python = base_python()
    if python != sys.executable:
        print(f"Python {sys.version.split()[0]} does not fit; going on with {python}", flush=True)
        os.execvp(python, [python, __file__])
    make_venv(build)
    install(build)
    # -P: the files of launch/ are not to be found as modules named `train` or `components`.
    code = subprocess.run([str(PYTHON), "-P", __file__, "--report"], cwd=ROOT, check=False).returncode
    if code:
        sys.exit(code)
    BEGUN.unlink()
    STAMP.write_text(f"{build}\n")


def main(arguments: list[str]) -> int:
    """Runs the set-up, or with `--report` its last step; returns the exit code."""
    try:
        report() if arguments == ["--report"] else set_up()
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("\nstopped; the next call starts over", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

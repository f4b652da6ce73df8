"""What a run leaves behind, written by global rank 0: config, plan, environment, metrics, result."""

import json
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dlrm_dist import __version__
from dlrm_dist.config import Config, RunSection
from dlrm_dist.errors import UserError
from dlrm_dist.planning.plan_file import PlanFile
from dlrm_dist.runtime import Session

_PACKAGES = ("torch", "torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu", "torchx", "pyarrow", "numpy")


def check(section: RunSection, resumes: bool = False) -> None:
    """Refuse a run's name that is taken, or that is needed to find the run to continue.

    Raises:
        UserError: its folder exists; there is no name.
    """
    if resumes and not section.name:
        raise UserError("checkpoint.resume auto continues the run that --run.name names; give its name")
    if not resumes and section.name and (section.folder / section.name).exists():
        raise UserError(f"{section.folder / section.name}: a run is there already; choose another --run.name")


class RunFolder:
    """A run's folder; made new, never shared with another run."""

    def __init__(self, section: RunSection, resumes: bool = False) -> None:
        check(section, resumes)
        if resumes and (section.folder / section.name).is_dir():
            self.path = section.folder / section.name
            return
        name = section.name or time.strftime("%Y%m%d-%H%M%S")
        self.path = section.folder / name
        number = 1
        while True:
            try:
                self.path.mkdir(parents=True)
                return
            except FileExistsError:
                check(section)
                number += 1
                self.path = section.folder / f"{name}-{number}"
            except OSError as error:
                raise UserError(f"{self.path}: cannot be made: {error.strerror}; choose another --run.folder") from None

    def start(self, config: Config, plan: PlanFile, session: Session) -> None:
        """Write what it takes to run it again."""
        config.write(self.path / "config.toml")
        plan.write(self.path / "plan.json")
        self.write_json("environment.json", _environment(session))

    def forget_after(self, step: int) -> None:
        """Drop what was reported of steps behind `step`: they will be done again."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            lines = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
            temporary = path.with_name(".metrics.jsonl.tmp")
            temporary.write_text("".join(line + "\n" for line in lines))
            temporary.replace(path)

    def report(self, line: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Write a JSON file whole or not at all."""
        temporary = self.path / f".{name}.tmp"
        temporary.write_text(json.dumps(values, indent=1) + "\n")
        temporary.replace(self.path / name)


def read_result(path: Path) -> dict[str, Any]:
    """The content of a run's result.json.

    Raises:
        UserError: it cannot be read, or is none.
    """
    try:
        result: dict[str, Any] = json.loads(path.read_text())
        describe(result)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: is not the result.json of a finished run: {error}; name runs/NAME/result.json"
        ) from None
    return result


def describe(result: dict[str, Any]) -> str:
    """A result in one line."""
    best = f" (best reachable {result['best_reachable_auc']:.4f})" if "best_reachable_auc" in result else ""
    return (
        f"done: {result['split']} AUC {result['auc']:.4f}{best}, log loss {result['log_loss']:.4f}, "
        f"{result['samples_per_s']:,.0f} samples/s; run folder {result['run']}"
    )


def _step_of(line: str) -> float:
    """The step of a report; a line cut short by a kill is behind all."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _environment(session: Session) -> dict[str, Any]:
    packages = {}
    for package in _PACKAGES:
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "dlrm_dist": __version__,
        "python": platform.python_version(),
        "packages": packages,
        "platform": platform.platform(),
        "device": str(session.device),
        "world_size": session.world_size,
        "local_world_size": session.local_world_size,
        "threads": session.threads,
    }

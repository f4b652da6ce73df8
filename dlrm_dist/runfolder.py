"""What a run leaves behind, written by global rank 0: config, plan, environment, metrics, result."""

import json
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dlrm_dist import __version__, pace, tries
from dlrm_dist.config import Config
from dlrm_dist.errors import BusyRunError, UserError
from dlrm_dist.listeners import Line, Listener
from dlrm_dist.packages import installed
from dlrm_dist.plain import without_nan
from dlrm_dist.planning.plan_file import PlanFile
from dlrm_dist.runs import record, report, state
from dlrm_dist.runtime import Session
from dlrm_dist.sections import RunSection

_PACKAGES = ("torch", "torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu", "torchx", "pyarrow", "numpy")

_LOCK_SECONDS = 2.0
"""A restarted run may find the killed one's lock for a moment..."""
_LOCK_SECONDS_OF_A_RESTART = 120.0
"""...and a job that has lost a host that of ranks there, which are cut off and still about to end; of a host that died,
an NFS server keeps it for a lease, Linux's for 90 s. The other ranks wait for `runtime.timeout_s` at most meanwhile."""


def check(section: RunSection, resumes: bool = False) -> None:
    """Refuse a run's name that is taken or in use, or that is needed to find the run to continue.

    Raises:
        UserError: its folder exists; there is no name; another run is using the folder.
    """
    path = section.folder / section.name
    if resumes and not section.name:
        raise UserError("train.resume auto continues the run that --run.name names; give its name")
    if not resumes and section.name and path.exists():
        raise UserError(
            f"{path}: a run is there already; choose another --run.name, or continue it: --train.resume auto"
        )
    if resumes and path.is_dir() and not tries.is_restart():
        _lock(path).release()


class RunFolder:
    """A run's folder: made new, or that of the run to continue; never used by two runs at a time."""

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

    @contextmanager
    def held(self, timeout_s: float) -> Iterator[None]:
        """Keep other runs out of the folder, clear what a killed one left half written, and report how this one ends.

        Args:
            timeout_s: seconds that the other ranks wait for this one at most.

        Raises:
            UserError: another run is using it.
            BusyRunError: this is a restart, and another run, or an earlier try of this job, is using it still.
        """
        with _lock(self.path, min(_LOCK_SECONDS_OF_A_RESTART, timeout_s / 2)):
            for leftover in self.path.glob(".*.tmp"):
                leftover.unlink()
            try:
                with state.noted(self.path):
                    yield
            except BaseException:
                with suppress(UserError):  # what ended the run shall be said, not that a full disk takes no report
                    self._report()
                raise
            self._report()

    def _report(self) -> None:
        if record.is_run(self.path):
            report.write([self.path], self.path / report.FILE)

    def start(self, config: Config, plan: PlanFile, session: Session) -> None:
        """Write what it takes to run it again."""
        config.write(self.path / "config.toml")
        plan.write(self.path / "plan.json")
        self.write_json("environment.json", _environment(session))

    def keep_vocabularies(self, data: Path) -> None:
        """Take the dataset's description and vocabularies along: without them its ids mean nothing.

        Files of a dataset never change, so that links do where the file system has them.
        """
        for path in [data / "dataset.json", *(data / "vocabulary").glob("*.parquet")]:
            target = self.path / path.relative_to(data)
            target.parent.mkdir(exist_ok=True)
            target.unlink(missing_ok=True)
            try:
                target.hardlink_to(path.resolve())
            except OSError:
                shutil.copyfile(path, target)

    def forget_after(self, step: int) -> None:
        """Drop what was reported of steps behind `step`: they will be done again."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            lines = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
            temporary = path.with_name(".metrics.jsonl.tmp")
            temporary.write_text("".join(line + "\n" for line in lines))
            temporary.replace(path)

    def trace(self, rank: int) -> Path:
        """Where a rank's profile belongs."""
        return self.path / "trace" / f"rank{rank}.pt.trace.json.gz"

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Write a JSON file whole or not at all."""
        temporary = self.path / f".{name}.tmp"
        temporary.write_text(json.dumps(without_nan(values), indent=1, allow_nan=False) + "\n")
        temporary.replace(self.path / name)


class MetricsFile(Listener):
    """Appends every report to metrics.jsonl."""

    def __init__(self, folder: RunFolder) -> None:
        self._path = folder.path / "metrics.jsonl"

    def trained(self, line: Line) -> None:
        """Append it."""
        with self._path.open("a") as file:
            file.write(json.dumps(without_nan(line), allow_nan=False) + "\n")

    def scored(self, line: Line) -> None:
        """Append it."""
        self.trained(line)


class Console(Listener):
    """Lines for people."""

    _total = 0
    _straggler: int | None = None

    def begins(self, done: int, total: int) -> None:
        """Note the number of steps."""
        self._total = total

    def trained(self, line: Line) -> None:
        """Position, loss and AUC since the last line, AUC of the epoch so far, what a step costs, time left."""
        bound = f", bound by {line['bound_by']}" if "bound_by" in line else ""
        left = timedelta(seconds=round(line["seconds_left"]))
        print(
            f"epoch {line['epoch']} batch {line['batch']} step {line['step']}/{self._total} loss {line['loss']:.5f} "
            f"auc {line['auc']:.5f} (epoch so far {line['epoch_auc']:.5f}) "
            f"input {line['split_ms']['input']:.2f} of {line['step_ms']:.1f} ms a step, "
            f"{line['samples']:,} samples, {line['samples_per_s']:,.0f} samples/s{bound}, {left} left",
            flush=True,
        )
        if line["ends_epoch"]:
            print(
                f"epoch {line['epoch']} done: loss {line['epoch_loss']:.5f} auc {line['epoch_auc']:.5f} of "
                f"{line['epoch_samples']:,} rows, behind {line['samples']:,} samples",
                flush=True,
            )
        self._name_straggler(line)

    def _name_straggler(self, line: Line) -> None:
        """Once for as long as it is the same rank."""
        if "own_ms" not in line:
            return
        straggler = line["straggler"]["rank"] if "straggler" in line else None
        if straggler not in (None, self._straggler):
            print(f"warning: {pace.describe(line)}", flush=True)
        self._straggler = straggler

    def scored(self, line: Line) -> None:
        """The scores."""
        stale = f", no better than step {line['best_step']}" if line.get("stale") else ""
        print(
            f"step {line['step']}: {line['split']} auc {line['auc']:.5f} log loss {line['log_loss']:.5f} ne "
            f"{line['ne']:.5f} accuracy {line['accuracy']:.5f} ({line['rows']:.0f} rows){stale}",
            flush=True,
        )

    def ends(self, result: Line | None) -> None:
        """The result."""
        if result:
            print(describe(result), flush=True)


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


def _lock(path: Path, patience_s: float = _LOCK_SECONDS) -> FileLock:
    """The folder's lock, taken, on a restart with more patience. The system drops it with its process."""
    lock = FileLock(path / state.LOCK)
    try:
        lock.acquire(timeout=patience_s if tries.is_restart() else _LOCK_SECONDS)
    except Timeout:
        if tries.is_restart():
            raise BusyRunError(
                f"{path}: an earlier try of this job, or another run, still uses this folder after {patience_s:.0f} s"
            ) from None
        raise UserError(
            f"{path}: another run is using this folder; wait for its end, or choose another --run.name"
        ) from None
    return lock


def _step_of(line: str) -> float:
    """The step of a report; a line cut short by a kill is behind all."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _environment(session: Session) -> dict[str, Any]:
    return {
        "dlrm_dist": __version__,
        "python": platform.python_version(),
        "packages": installed(_PACKAGES),
        "platform": platform.platform(),
        "device": str(session.device),
        "world_size": session.world_size,
        "local_world_size": session.local_world_size,
        "threads": session.threads,
    }

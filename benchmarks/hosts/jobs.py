"""Training jobs of several hosts: an agent on each, and what their run tells."""

import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT
from benchmarks.hosts.namespaces import Host, Program

PORT = 29500
MODEL = ("--model.embedding_dim", "8", "--model.bottom_mlp", "16,8", "--model.top_mlp", "16,1")


class Job:
    """A run, its data and how it is started on any host."""

    def __init__(
        self,
        folder: Path,
        data: Path,
        store: str,
        nnodes: str,
        *arguments: object,
        max_restarts: int = 3,
        ranks_per_host: int = 2,
    ) -> None:
        self.run = folder / "runs" / "mine"
        launch = [
            "-m",
            "launch.elastic",
            "--nnodes",
            nnodes,
            "--nproc-per-node",
            ranks_per_host,
            "--max-restarts",
            max_restarts,
        ]
        launch += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{store}:{PORT}", "--rdzv-id", "job"]
        launch += ["launch/train.py", "--data.path", data, "--run.folder", folder / "runs", "--run.name", "mine"]
        launch += ["--runtime.device", "cpu", "--runtime.threads", 1, *MODEL, *arguments]
        self._words = [str(word) for word in launch]

    def start(self, host: Host) -> Program:
        """An agent on a host."""
        return host.start(sys.executable, *self._words, cwd=ROOT, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))

    def lines(self, split: str = "train") -> list[dict[str, Any]]:
        """What metrics.jsonl says of a split, so far."""
        path = self.run / "metrics.jsonl"
        found = [_parsed(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [line for line in found if line.get("split") == split]

    def await_step(self, step: int, timeout: float) -> None:
        """Wait until a step is reported."""
        end = time.monotonic() + timeout
        while not any(line["step"] >= step for line in self.lines()):
            if time.monotonic() > end:
                raise TimeoutError(f"{self.run} did not come to step {step} within {timeout} s")
            time.sleep(0.05)

    def await_ranks(self, count: int, timeout: float) -> int:
        """Wait until a try of so many ranks has reported; gives the step that was reported before it."""
        end = time.monotonic() + timeout
        while self.world_size() != count:
            if time.monotonic() > end:
                raise TimeoutError(f"{self.run} did not go on with {count} ranks within {timeout} s")
            time.sleep(0.05)
        return self.last_step()

    def last_step(self) -> int:
        """The step of the last report."""
        return max((int(line["step"]) for line in self.lines()), default=0)

    def last_saved(self) -> int:
        """The step of the newest checkpoint."""
        names = [path.name for path in (self.run / "checkpoints").glob("step_*")]
        return max((int(name.removeprefix("step_")) for name in names), default=0)

    def world_size(self) -> int:
        """Of the try that began last."""
        return int(json.loads((self.run / "environment.json").read_text())["world_size"])

    def result(self) -> dict[str, float]:
        """The run's result."""
        return dict(json.loads((self.run / "result.json").read_text()))


def resumed_after(agents: Iterable[Program]) -> list[int]:
    """The steps of the checkpoints from which a job of these agents went on."""
    return [int(step) for each in agents for step in re.findall(r"continuing after step (\d+)", each.output)]


def pid_of(host: Host, rank: int) -> int:
    """The process of a global rank that runs on a host.

    Raises:
        LookupError: there is none.
    """
    for pid in sorted(host.pids()):
        try:
            words, environment = (
                Path("/proc", str(pid), each).read_bytes().split(b"\0") for each in ("cmdline", "environ")
            )
        except OSError:
            continue
        if b"launch/train.py" in words and f"RANK={rank}".encode() in environment:
            return pid
    raise LookupError(f"no rank {rank} on {host.name}")


@contextmanager
def slowed(pid: int, share: float, period_s: float = 0.02) -> Iterator[None]:
    """Stop a process for a share of the time."""
    over = threading.Event()

    def work() -> None:
        with suppress(ProcessLookupError):
            while not over.is_set():
                os.kill(pid, signal.SIGSTOP)
                time.sleep(period_s * share)
                os.kill(pid, signal.SIGCONT)
                time.sleep(period_s * (1 - share))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def start_store(host: Host) -> Program:
    """The rendezvous store, in a process of its own."""
    store = host.start(sys.executable, "-m", "launch.store", "--port", str(PORT), cwd=ROOT, PYTHONPATH=str(ROOT))
    store.wait_for("rendezvous store on port", 60)
    return store


def _parsed(line: str) -> dict[str, Any]:
    """A report; empty for a line that is being written."""
    try:
        return dict(json.loads(line))
    except ValueError:
        return {}

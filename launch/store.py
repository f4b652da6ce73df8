"""The rendezvous store of jobs of several hosts, in a process of its own: `python -m launch.store --port 29500`.

A store inside an agent or a rank dies with its host, and with it the job; beside them, where no worker runs, it lets a
job outlive any of its hosts. One store serves any number of jobs: their keys begin with the job's id (`--rdzv-id`).
`launch.elastic` starts one, which ends by itself, where its endpoint is this machine and nothing listens there.
"""

import argparse
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import NoReturn

from torch.distributed import DistError, TCPStore

BEATS = "dlrm_dist.beats"
"""A counter that every agent raises now and then: the store's sign that somebody needs it."""
MODULE = "launch.store"
_EVERY_S = 2.0
_READY = "rendezvous store on port"
_started: list[subprocess.Popen[str]] = []
"""Kept: Python complains of a process that it forgets while it runs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Keep a store; returns when nobody has needed it for long enough."""
    parser = _Parser(prog="python -m launch.store", description=__doc__)
    parser.add_argument("--port", type=_port, default=29500)
    parser.add_argument("--idle-s", type=_seconds, default=float("inf"), help="end after so long without an agent")
    options = parser.parse_args(arguments)
    try:
        store = TCPStore(
            "localhost", options.port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30)
        )
    except DistError as error:
        print(f"error: --port {options.port}: {str(error).splitlines()[0]}; choose a free one", file=sys.stderr)
        return 2
    print(f"{_READY} {store.port}", flush=True)
    beats, since = 0, time.monotonic()
    try:
        while time.monotonic() - since < options.idle_s:
            time.sleep(_EVERY_S)
            found = store.add(BEATS, 0)
            if found != beats:
                beats, since = found, time.monotonic()
    except KeyboardInterrupt:
        return 130
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say one line, without the usage."""
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(2)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: seconds above 0, or inf")
    return seconds


def _port(text: str) -> int:
    if not (text.isdecimal() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: 0 (any free one) to 65535")
    return int(text)


def start(port: int, idle_s: float) -> str:
    """Start a store that outlives this process, and wait until it is there; returns why it is not, or nothing."""
    process = subprocess.Popen(
        [sys.executable, "-m", MODULE, "--port", str(port), "--idle-s", str(idle_s)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )
    _started.append(process)
    assert process.stdout
    last = ""
    with process.stdout:
        for line in process.stdout:
            if line.startswith(_READY):
                return ""
            last = line.strip() or last
    return last.removeprefix("error: ")


if __name__ == "__main__":
    sys.exit(main())

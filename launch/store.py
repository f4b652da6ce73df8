"""The rendezvous store of jobs of several hosts, in a process of its own: `python -m launch.store --port 29500`.

A store inside an agent or a rank dies with its host, and with it the job; beside them, where no worker runs, it lets a
job outlive any of its hosts. One store serves any number of jobs: their keys begin with the job's id (`--rdzv-id`).
`launch.elastic` starts one, which ends by itself, where its endpoint is this machine and nothing listens there.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import timedelta

from torch.distributed import DistError, TCPStore

BEATS = "dlrm_dist.beats"
"""A counter that every agent raises now and then: the store's sign that somebody needs it."""
_EVERY_S = 2.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Keep a store; returns when nobody has needed it for long enough."""
    parser = argparse.ArgumentParser(prog="python -m launch.store", description=__doc__)
    parser.add_argument("--port", type=int, default=29500)
    parser.add_argument("--idle-s", type=float, default=float("inf"), help="end after so long without an agent")
    options = parser.parse_args(arguments)
    try:
        store = TCPStore(
            "localhost", options.port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30)
        )
    except DistError as error:
        print(f"error: --port {options.port}: {str(error).splitlines()[0]}; choose a free one", file=sys.stderr)
        return 2
    print(f"rendezvous store on port {store.port}", flush=True)
    beats, since = 0, time.monotonic()
    while time.monotonic() - since < options.idle_s:
        time.sleep(_EVERY_S)
        found = store.add(BEATS, 0)
        if found != beats:
            beats, since = found, time.monotonic()
    return 0


def start(port: int, idle_s: float) -> None:
    """Start a store that outlives this process; one that finds its port taken ends at once."""
    subprocess.Popen(
        [sys.executable, "-m", "launch.store", "--port", str(port), "--idle-s", str(idle_s)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


if __name__ == "__main__":
    sys.exit(main())

"""How the agents of a job of several hosts meet, and which of them count as lost: torchrun's options for it."""

import os
import socket
import sys
import time
from argparse import Namespace
from dataclasses import dataclass

from torch.distributed import run
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

from dlrm_dist.tries import JOB_STORE
from launch import store

DEFAULTS = {
    "is_host": "0",  # the store is a process of its own, see launch/store.py
    "keep_alive_interval": "2",
    "keep_alive_max_attempt": "4",  # a host that was silent for 8 s is lost
    "last_call_timeout": "5",  # with hosts enough, wait so long for more
    "join_timeout": "600",  # with too few, so long for one to come back
}
"""Of `--rdzv-conf`; what the command line says goes before."""
_IDLE_S = 120.0
"""A store that was started here ends so long after the last agent."""


@dataclass(frozen=True)
class Endpoint:
    """Where the store listens."""

    host: str
    port: int

    def __str__(self) -> str:
        """As on torchrun's command line."""
        return f"{self.host}:{self.port}"


def endpoint_of(args: Namespace) -> Endpoint | None:
    """The store's address, when the job may have several hosts that meet at one; else None."""
    _, max_nodes = run.parse_min_max_nnodes(args.nnodes)
    if max_nodes == 1 or args.standalone or args.rdzv_backend != "c10d":
        return None
    return Endpoint(*parse_rendezvous_endpoint(args.rdzv_endpoint, default_port=29500))


def prepare(args: Namespace, endpoint: Endpoint) -> None:
    """Set torchrun's options, and what it and the ranks read from the environment."""
    given = dict(each.split("=", 1) for each in args.rdzv_conf.split(",") if each)
    args.rdzv_conf = ",".join(f"{key}={value}" for key, value in {**DEFAULTS, **given}.items())
    # A store inside the first host's agent would die with it; and a host that comes back could not reach it.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ[JOB_STORE] = str(endpoint)


def join_timeout_s(args: Namespace) -> float:
    """How long a host waits for others, and for the store."""
    return float(dict(each.split("=", 1) for each in args.rdzv_conf.split(",") if each)["join_timeout"])


def await_store(endpoint: Endpoint, patience_s: float) -> bool:
    """Wait until the store answers; starts it if it belongs on this machine. Returns whether it does."""
    end, said = time.monotonic() + patience_s, False
    while not _listens(endpoint):
        if time.monotonic() > end:
            return False
        if _is_here(endpoint):
            store.start(endpoint.port, _IDLE_S)
            time.sleep(2)
        elif not said:
            said = True
            print(f"{socket.gethostname()}: waiting for the rendezvous store {endpoint}", file=sys.stderr)
        time.sleep(0.5)
    return True


def _listens(endpoint: Endpoint) -> bool:
    try:
        socket.create_connection((endpoint.host, endpoint.port), timeout=2).close()
    except OSError:
        return False
    return True


def _is_here(endpoint: Endpoint) -> bool:
    """Whether the address is one of this machine's: only those can be bound."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(endpoint.host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.bind(address)
    except OSError:
        return False
    return True

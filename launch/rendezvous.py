"""How the agents of a job of several hosts meet, and which of them count as lost: torchrun's options for it."""

import json
import os
import re
import socket
import sys
import threading
import time
from argparse import Namespace
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from torch.distributed import DistError, TCPStore, run
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

from dlrm_dist import tries
from dlrm_dist.errors import UserError, first_line
from launch import store

DEFAULTS = {
    "is_host": "0",  # the store is a process of its own, see launch/store.py
    "keep_alive_interval": "2",
    "keep_alive_max_attempt": "4",  # a host that was silent for 8 s is lost
    "last_call_timeout": "5",  # with hosts enough, wait so long for more
    "join_timeout": "600",  # with too few, so long for one to come back
}
"""Of `--rdzv-conf`; what the command line says goes before."""
NOTES = "DLRM_DIST_JOB_NOTES"
"""In the environment of an agent that begins again: what the job had noted in the store that was lost."""
_WHOLE = re.compile(r"[1-9][0-9]*")
_WHOLE_KEYS = (*list(DEFAULTS)[1:], "close_timeout", "heartbeat_timeout", "read_timeout")
_ANSWER_S = 5.0
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
    """The store's address, when the job may have several hosts that meet at one; else None.

    Raises:
        UserError: an option has a wrong value.
    """
    max_nodes = _checked_size(args)
    settings(args.rdzv_conf)
    if max_nodes == 1 or args.standalone or args.rdzv_backend != "c10d":
        return None
    try:
        return Endpoint(*parse_rendezvous_endpoint(args.rdzv_endpoint, default_port=29500))
    except ValueError as error:
        raise UserError(f"--rdzv-endpoint: {first_line(error)} Allowed: HOST:PORT, such as store1:29500") from None


def _checked_size(args: Namespace) -> int:
    """The number of hosts at most."""
    try:
        least, most = run.parse_min_max_nnodes(args.nnodes)
    except (ValueError, RuntimeError):
        least = most = 0
    if not 1 <= least <= most:
        raise UserError(f"--nnodes is {args.nnodes!r}; allowed: hosts, such as 2, or LEAST:MOST, such as 1:2")
    try:
        ranks = run.determine_local_world_size(args.nproc_per_node)
    except ValueError:
        ranks = 0
    if ranks < 1:
        raise UserError(f"--nproc-per-node is {args.nproc_per_node!r}; allowed: a number, gpu, cpu or auto")
    if args.max_restarts < 0:
        raise UserError(f"--max-restarts is {args.max_restarts}; allowed: 0 or more")
    return int(most)


def prepare(args: Namespace, endpoint: Endpoint) -> None:
    """Set torchrun's options, and what it and the ranks read from the environment.

    Raises:
        UserError: `--rdzv-conf` has a wrong value.
    """
    args.rdzv_conf = ",".join(f"{key}={value}" for key, value in {**DEFAULTS, **settings(args.rdzv_conf)}.items())
    # A store inside the first host's agent would die with it; and a host that comes back could not reach it.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ[tries.JOB_STORE] = str(endpoint)
    os.environ[tries.MOST_HOSTS] = str(run.parse_min_max_nnodes(args.nnodes)[1])


def settings(given: str, option: str = "--rdzv-conf") -> dict[str, str]:
    """What `--rdzv-conf` sets; `option` is its name where it was given.

    Raises:
        UserError: it is not of the form key=value,..., or a time or a count is no whole number.
    """
    found: dict[str, str] = {}
    for each in filter(None, given.split(",")):
        key, _, value = each.partition("=")
        if not (key and value) or (key in _WHOLE_KEYS and not _WHOLE.fullmatch(value)):
            raise UserError(
                f"{option} is {given!r}; allowed: key=value,..., of whole numbers from 1 on, such as join_timeout=600"
            )
        found[key] = value
    return found


def join_timeout_s(args: Namespace) -> float:
    """How long a host waits for others, and for the store."""
    return float(settings(args.rdzv_conf)["join_timeout"])


def await_store(endpoint: Endpoint, job: str, patience_s: float) -> str:
    """Wait until the store answers; starts it if it belongs on this machine.

    One that was started anew is told again what the job has noted before. Returns why it is not there; empty if it is.
    """
    end, said = time.monotonic() + patience_s, False
    while True:
        found = _answering(endpoint)
        with suppress(DistError):  # gone again: it is waited for
            if found:
                tries.remind(found, job, json.loads(os.environ.get(NOTES, "{}")))
                return ""
        if time.monotonic() > end:
            return f"was not there for {patience_s:g} s"
        if _is_here(endpoint):
            problem = store.start(endpoint.port, _IDLE_S)
            if problem and not _answering(endpoint):
                return f"cannot be started: {problem}"
        elif not said:
            said = True
            print(f"{socket.gethostname()}: waiting for the rendezvous store {endpoint}", file=sys.stderr)
        time.sleep(0.5)


def connect(endpoint: Endpoint, timeout_s: float) -> TCPStore:
    """The store.

    Raises:
        DistError: it does not answer in time.
    """
    timeout = timedelta(seconds=timeout_s)
    return TCPStore(endpoint.host, endpoint.port, is_master=False, wait_for_workers=False, timeout=timeout)


def verdict(endpoint: Endpoint, job: str) -> int | None:
    """The exit code that a try of the job found to be final, if one did and the store can tell."""
    found = _answering(endpoint)
    with suppress(DistError):
        return tries.verdict_of(found, job) if found else None
    return None


def _answering(endpoint: Endpoint) -> TCPStore | None:
    """The store, if something listens there which is one: with what is none the call would not return."""
    found: list[TCPStore] = []

    def ask() -> None:
        with suppress(DistError):
            found.append(connect(endpoint, _ANSWER_S))

    try:
        socket.create_connection((endpoint.host, endpoint.port), timeout=2).close()
    except OSError:
        return None
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_ANSWER_S)
    return found[0] if found else None


def _is_here(endpoint: Endpoint) -> bool:
    """Whether the address is one of this machine's: only those can be bound."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(endpoint.host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.bind(address)
    except OSError:
        return False
    return True

"""The tries of a job: a launcher starts the ranks anew after a failure, and when a host comes or goes.

What the ranks of one try share is their process group's store; what one try notes for those that follow is kept by the
launcher, if there is one: by torchrun's agent, or, for several hosts, by a store beside them (`launch/store.py`).
"""

import functools
import os
from collections.abc import Mapping
from datetime import timedelta

import torch.distributed as dist

from dlrm_dist import place

JOB_STORE = "DLRM_DIST_JOB_STORE"
"""In the environment of ranks that `launch.elastic` starts on several hosts: host and port of the job's store."""
MOST_HOSTS = "DLRM_DIST_MOST_HOSTS"
"""Beside it: how many hosts the job may have."""
_QUICK = timedelta(seconds=10)
_FIRST = "first try"
RUN = "run"
"""Under which the first try notes the run's name for those that follow."""
_VERDICT = "exit code"
"""Noted by a try whose end another try would not change."""


def spans_hosts() -> bool:
    """Whether hosts may come and go while the job goes on."""
    return JOB_STORE in os.environ


def lacks_hosts() -> bool:
    """Whether this try has fewer hosts than the job may have: more may still come."""
    return int(os.environ.get(MOST_HOSTS, "0")) * place.local_world_size() > place.world_size()


@functools.cache
def is_restart() -> bool:
    """Whether an earlier try of this job has begun. The same on all ranks of a try.

    torchrun's count is its agent's own: that of a host which has come back begins at 0 again.
    """
    if not spans_hosts():
        return _restarts() != "0"
    store = _kept(_QUICK)
    assert store is not None
    return store.compare_set(_FIRST, "", _this_try()).decode() != _this_try()


def recall(key: str) -> str | None:
    """What an earlier try of this job noted under a key, if it did."""
    store = _kept(_QUICK)
    return store.get(key).decode() if store and store.check([key]) else None


def note(key: str, value: str) -> None:
    """Note something for the later tries of this job; without a launcher that restarts there are none."""
    store = _kept(_QUICK)
    if store:
        store.set(key, value)


def final(code: int) -> int:
    """Notes that another try would end alike: the launcher may start the ranks again all the same. Returns the code."""
    note(_VERDICT, str(code))
    return code


def verdict() -> int | None:
    """The exit code that an earlier try found to be final, if one did."""
    code = recall(_VERDICT) if is_restart() else None
    return None if code is None else int(code)


def verdict_of(store: dist.Store, job: str) -> int | None:
    """The same of a job, for who is none of its ranks."""
    code = noted(store, job).get(_VERDICT)
    return None if code is None else int(code)


def noted(store: dist.Store, job: str) -> dict[str, str]:
    """What the tries of a job over several hosts have noted so far, in the store beside them."""
    notes = _of_job(store, job)
    return {key: notes.get(key).decode() for key in (_FIRST, RUN, _VERDICT) if notes.check([key])}


def remind(store: dist.Store, job: str, notes: Mapping[str, str]) -> None:
    """Tell a store what `noted` has found: it may have been started anew since, and knows nothing then."""
    for key, value in notes.items():
        _of_job(store, job).compare_set(key, "", value)


def store_of_this_try(timeout: timedelta, global_rank: int) -> dist.Store:
    """A store that the ranks of this try share; with one of all tries, 5 of 8 restarts after SIGKILL failed."""
    if "MASTER_ADDR" not in os.environ:
        return dist.HashStore()
    store = _kept(timeout) or _open(_master(), timeout, is_server=global_rank == 0)
    return dist.PrefixStore(f"try{_this_try()}", store)


def _this_try() -> str:
    """A name of this try, which all its ranks know.

    Over several hosts the counts differ from agent to agent; but the first agent chooses a free port for each try.
    """
    return ":".join(_master()) if spans_hosts() else _restarts()


def _restarts() -> str:
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def _master() -> tuple[str, str]:
    return os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]


def _kept(timeout: timedelta) -> dist.Store | None:
    """The store that the launcher keeps over the tries, if there is one."""
    if spans_hosts():
        host, _, port = os.environ[JOB_STORE].rpartition(":")
        return _of_job(_open((host, port), timeout, is_server=False), os.environ["TORCHELASTIC_RUN_ID"])
    hosted_by_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return _open(_master(), timeout, is_server=False) if hosted_by_launcher else None


def _of_job(store: dist.Store, job: str) -> dist.Store:
    return dist.PrefixStore(f"dlrm_dist.{job}", store)


def _open(address: tuple[str, str], timeout: timedelta, is_server: bool) -> dist.Store:
    host, port = address
    return dist.TCPStore(host, int(port), is_master=is_server, timeout=timeout, wait_for_workers=False)

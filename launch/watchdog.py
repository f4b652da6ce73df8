"""What an agent of torchrun cannot do while it waits for a store that it cannot reach: end, or start anew.

Its main thread then hangs inside a call to the store, for up to a minute or for ever, and Python handles no signal
meanwhile. A thread of its own asks the store and reads the signals as they come.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from torch.distributed import DistError

from dlrm_dist import tries
from dlrm_dist.interruption import EXIT_CODE
from launch.rendezvous import NOTES, Endpoint, connect
from launch.store import BEATS, MODULE

_BEAT_S = 1.0
_LOST_S = 12.0
"""Longer than the others wait before they count this host as lost: 8 s by launch/rendezvous.py."""
_MARGIN_S = 5.0
_JOIN_S = 3.0
"""The process aborted once in some ten runs: a thread, it seems, was still inside a call to the store at its end."""


class Watchdog:
    """Watches the store and the signals; as a context manager, for as long as the agent runs.

    When the store has not answered for a while and no rank is left to train on without it, the process begins again
    with its own command line: it waits for the store, and joins the job when the link or the store is back; where no
    restarts are wanted, it ends. When a request to stop has not ended the process in the time that ranks have to save,
    it ends it, and its ranks.
    """

    def __init__(self, endpoint: Endpoint, job: str, may_return: bool) -> None:
        self._endpoint, self._job, self._may_return = endpoint, job, may_return
        self._notes: dict[str, str] = json.loads(os.environ.get(NOTES, "{}"))
        self._grace_s = float(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "30")) + _MARGIN_S
        self._answered = time.monotonic()
        self._over = threading.Event()
        self._signals, self._wakeup = socket.socketpair()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._ask, self._watch)]

    def __enter__(self) -> "Watchdog":
        self._signals.setblocking(False)
        self._wakeup.setblocking(False)
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, where: TracebackType | None) -> None:
        self._over.set()
        signal.set_wakeup_fd(-1)
        for thread in self._threads:
            thread.join(_JOIN_S)

    def start_anew(self, why: str) -> NoReturn:
        """Begin this process again, without its ranks, or end it where no restarts are wanted."""
        _kill_descendants()
        if not self._may_return:
            self._say(f"{why}, and no restarts are wanted (--max_retries): ended")
            os._exit(1)
        self._say(f"{why}: waiting for it, to join the job again")
        os.environ[NOTES] = json.dumps(self._notes)
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *_own_arguments()])

    def _ask(self) -> None:
        """Ask the store again and again; a call to a store that is out of reach does not return.

        One that was started anew meanwhile is told again what the job has noted.
        """
        while not self._over.is_set():
            try:
                store = connect(self._endpoint, _LOST_S)
                tries.remind(store, self._job, self._notes)
                while not self._over.wait(_BEAT_S):
                    store.add(BEATS, 1)
                    self._answered = time.monotonic()
                    self._notes = tries.noted(store, self._job) or self._notes
            except DistError:
                self._over.wait(_BEAT_S)

    def _watch(self) -> None:
        stop_at, without_ranks = float("inf"), 0
        while not self._over.wait(0.5):
            now = time.monotonic()
            if stop_at == float("inf") and self._was_asked_to_stop():
                stop_at = now + self._grace_s
            silent_s = now - self._answered
            if now > stop_at:
                self._say(f"asked to stop, and still there after {self._grace_s:.0f} s: ended by its watchdog")
                _kill_descendants()
                os._exit(EXIT_CODE)
            without_ranks = 0 if _running_children() else without_ranks + 1
            if silent_s > _LOST_S and without_ranks > 2:  # the last rank's last line is copied by then
                if stop_at < float("inf"):
                    os._exit(EXIT_CODE)
                self.start_anew(f"the rendezvous store {self._endpoint} has not answered for {silent_s:.0f} s")

    def _was_asked_to_stop(self) -> bool:
        try:
            return bool({signal.SIGTERM, signal.SIGINT} & set(self._signals.recv(4096)))
        except BlockingIOError:
            return False

    def _say(self, line: str) -> None:
        print(f"error: agent on {socket.gethostname()}: {line}", file=sys.stderr, flush=True)


def _own_arguments() -> list[str]:
    """This process's command line behind the interpreter."""
    return sys.orig_argv[1:]


def _children(pid: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state not in "ZX":
            found.append(int(folder.name))
    return found


def _running_children() -> list[int]:
    """All but the store, which may have been started here and outlives this process."""
    return [pid for pid in _children(os.getpid()) if not _is_store(pid)]


def _is_store(pid: int) -> bool:
    try:
        return MODULE.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def _kill_descendants() -> None:
    waiting = _running_children()
    while waiting:
        pid = waiting.pop()
        waiting += _children(pid)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue

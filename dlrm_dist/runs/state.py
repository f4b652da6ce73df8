"""How a run stands: `state.json` in its folder, and the lock that a run holds while it goes on."""

import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dlrm_dist.errors import first_line
from dlrm_dist.interruption import InterruptedRunError

STATES = ("running", "finished", "interrupted", "failed")
LOCK = ".lock"
_FILE = "state.json"
_KILLED = "ended without a word, as by SIGKILL or a power cut"


@contextmanager
def noted(run: Path) -> Iterator[None]:
    """Note that the run goes on, and then how it ended: with an InterruptedRunError it was interrupted."""
    started = _now()
    _write(run, {"state": "running", "started": started})
    try:
        yield
    except BaseException as error:
        state = "interrupted" if isinstance(error, InterruptedRunError) else "failed"
        with suppress(OSError):  # a full disk is why many a run fails, and shall be said instead of this
            _write(run, {"state": state, "started": started, "ended": _now(), "reason": first_line(error)})
        raise
    _write(run, {"state": "finished", "started": started, "ended": _now()})


def read(run: Path) -> dict[str, str]:
    """The run's state (one of STATES), when it was started and ended, and why; what is not known is empty.

    A run that says it goes on, but holds no lock, was killed.
    """
    try:
        found = json.loads((run / _FILE).read_text())
        if found["state"] not in STATES:
            raise ValueError(found["state"])
    except (OSError, ValueError, KeyError, TypeError):
        found = {"state": "failed", "reason": f"{_FILE} is missing or damaged"}
    if found["state"] == "running" and not _is_locked(run):
        found |= {"state": "failed", "reason": _KILLED}
    return {key: str(found.get(key, "")) for key in ("state", "started", "ended", "reason")}


def _is_locked(run: Path) -> bool:
    """Whether a run holds the folder's lock. A shared lock, so that those who look do not keep out each other."""
    try:
        with (run / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _write(run: Path, values: dict[str, Any]) -> None:
    temporary = run / f".{_FILE}.tmp"
    temporary.write_text(json.dumps(values, indent=1) + "\n")
    temporary.replace(run / _FILE)


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S%z")

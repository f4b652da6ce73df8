"""SIGTERM and SIGINT as a request to stop after the step, so that a run can be saved."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 75
"""EX_TEMPFAIL: stopped on request, saved, can be continued. A scheduler may queue the job again."""


class InterruptedRunError(Exception):
    """The run was asked to stop, and its state is saved; `was_asked` if this rank was, and not only others."""

    def __init__(self, message: str, was_asked: bool = True) -> None:
        super().__init__(message)
        self.was_asked = was_asked


class Interruption:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.is_requested = False

    def request(self, _signal: int, _frame: FrameType | None) -> None:
        """A signal handler."""
        self.is_requested = True


@contextmanager
def interruption() -> Iterator[Interruption]:
    """Listen for SIGTERM and SIGINT inside; what handled them before does so again behind it.

    Not when an exception leaves it: then the process is about to end, and shall first say why.
    """
    found = Interruption()
    before = {number: signal.signal(number, found.request) for number in (signal.SIGTERM, signal.SIGINT)}
    yield found
    for number, handler in before.items():
        signal.signal(number, handler)

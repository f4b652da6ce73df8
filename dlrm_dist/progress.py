"""How far long work is: a bar on a terminal, a plain line now and then where the output is a file."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol, TextIO

from tqdm import tqdm

_QUIET_SECONDS = 2.0
"""What is done sooner shows nothing on a terminal."""
_LINE_SECONDS = 30.0


class Progress(Protocol):
    """Is told what is done."""

    def update(self, rows: int) -> object:
        """So many more rows are done."""


class Lines:
    """Writes a line every half minute: done, of how many, the rate, the time left.

    Args:
        total: rows in all.
        what: the work.
        out: where lines go.
        seconds: between two lines.
    """

    def __init__(self, total: int, what: str, out: TextIO, seconds: float = _LINE_SECONDS) -> None:
        self._total, self._what, self._out, self._seconds = total, what, out, seconds
        self._done = 0
        self._started = self._said = time.monotonic()

    def update(self, rows: int) -> None:
        """So many more rows are done."""
        self._done += rows
        now = time.monotonic()
        if now - self._said < self._seconds or not self._done:
            return
        self._said = now
        rate = self._done / (now - self._started)
        left = timedelta(seconds=round((self._total - self._done) / rate))
        print(
            f"{self._what}: {self._done:,} of {self._total:,} rows, {rate:,.0f} rows/s, {left} left",
            file=self._out,
            flush=True,
        )


class _Silent:
    def update(self, rows: int) -> None:
        """Nothing."""


@contextmanager
def progress(total: int, what: str, speaks: bool = True) -> Iterator[Progress]:
    """Show progress on stderr; of several ranks one speaks."""
    if not speaks:
        yield _Silent()
    elif sys.stderr.isatty():
        with tqdm(total=total, desc=what, unit=" rows", unit_scale=True, delay=_QUIET_SECONDS) as bar:
            yield bar
    else:
        yield Lines(total, what, sys.stderr)

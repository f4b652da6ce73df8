"""How far scoring is: a bar on a terminal, a plain line now and then where the output is a file."""

import sys
import time
from datetime import timedelta
from types import TracebackType
from typing import Self

from tqdm import tqdm

_LINE_SECONDS = 10.0


class Progress:
    """Rows done of a known number, on stderr."""

    def __init__(self, name: str, total: int) -> None:
        self._name, self._total, self._done = name, total, 0
        self._started = self._said = time.monotonic()
        self._bar = tqdm(total=total, desc=name, unit=" rows", unit_scale=True, disable=None, leave=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def add(self, rows: int) -> None:
        """So many more are done."""
        self._done += rows
        self._bar.update(rows)
        now = time.monotonic()
        if self._bar.disable and now - self._said >= _LINE_SECONDS:
            self._said = now
            left = timedelta(seconds=round((self._total - self._done) / self.rate))
            print(
                f"{self._name}: {self._done:,} of {self._total:,} rows, {self.rate:,.0f} rows/s, {left} left",
                file=sys.stderr,
                flush=True,
            )

    @property
    def rate(self) -> float:
        """Rows a second."""
        return self._done / max(time.monotonic() - self._started, 1e-9)

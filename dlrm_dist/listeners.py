"""Who is told of a run's progress: what they hear, and when."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

Line = dict[str, Any]
"""A report: `step`, `split` ("train", or the one that was scored) and figures by name."""


class Listener:
    """Is told what happens, in this order; does nothing with it unless it says otherwise."""

    def begins(self, done: int, total: int) -> None:
        """Training begins behind `done` steps of `total`."""

    def trained(self, line: Line) -> None:
        """Training has come to a report."""

    def scoring(self, line: Line) -> None:
        """A split is going to be scored at a step."""

    def scored(self, line: Line) -> None:
        """It was."""

    def ends(self, result: Line | None) -> None:
        """The run ends: with a result, or (None) stopped or failed."""


class _Everyone(Listener):
    """Several listeners as one, told in order."""

    def __init__(self, listeners: Sequence[Listener] = ()) -> None:
        self._listeners = listeners

    def begins(self, done: int, total: int) -> None:
        """Tell them."""
        for each in self._listeners:
            each.begins(done, total)

    def trained(self, line: Line) -> None:
        """Tell them."""
        for each in self._listeners:
            each.trained(line)

    def scoring(self, line: Line) -> None:
        """Tell them."""
        for each in self._listeners:
            each.scoring(line)

    def scored(self, line: Line) -> None:
        """Tell them."""
        for each in self._listeners:
            each.scored(line)

    def ends(self, result: Line | None) -> None:
        """Tell them."""
        for each in self._listeners:
            each.ends(result)


@contextmanager
def told(listeners: Sequence[Listener]) -> Iterator[Listener]:
    """The listeners as one; if an error ends what is inside, they are told that the run ends."""
    everyone = _Everyone(listeners)
    try:
        yield everyone
    except BaseException:
        everyone.ends(None)
        raise

"""How far a command is, with rate and time left: a bar on a terminal, a plain line now and then in a file.

It goes to stderr, so that what a command prints for other programs stays clean. Short work shows nothing.
"""

import sys
from collections.abc import Collection, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")
_SILENT_S = 2.0
"""Work that takes less says nothing."""
_BETWEEN_LINES_S = 15.0
"""In a file."""


def bar(what: str, unit: str, total: int | None = None, speaks: bool = True) -> Any:
    """A tqdm to tell how much more is done (`update`), in a `with`.

    Args:
        what: the work, in a word or two.
        unit: what is counted, in the plural.
        total: how many there are; None where nobody knows, and then there is no time left to show.
        speaks: whether anything is shown: of several ranks one speaks.
    """
    is_many = total is None or total >= 10_000
    options = {"total": total, "desc": what, "unit": f" {unit}", "unit_scale": is_many, "delay": _SILENT_S}
    if not speaks:
        return tqdm(disable=True)
    if sys.stderr.isatty():
        return tqdm(**options, leave=total is not None, dynamic_ncols=True)
    counts = "{n_fmt} of {total_fmt}{unit}" if total is not None else "{n_fmt}{unit}"
    left = ", {remaining} left" if total is not None else ""
    form = "{desc}: " + counts + ", {rate_fmt}, {elapsed} so far" + left
    return _Lines(**options, bar_format=form, mininterval=_BETWEEN_LINES_S, miniters=1, leave=False)


def each(items: Collection[T], what: str, unit: str, speaks: bool = True) -> Iterator[T]:
    """The items, while it is told how many of them are done."""
    with bar(what, unit, len(items), speaks) as shown:
        for item in items:
            yield item
            shown.update()


class _Lines(tqdm):  # type: ignore[misc]
    """A tqdm whose every state is a line of its own."""

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Write the state; not the empty one that clears a bar."""
        if msg is None:
            self.fp.write(f"{self}\n")
            self.fp.flush()
        return False

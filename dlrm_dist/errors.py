"""Exceptions for what a user can mend, or must know in one line."""

from typing import Any


class UserError(Exception):
    """A user's mistake: one line that says what, where, what is allowed, and the way out.

    The commands print it on stderr without a traceback and exit with code 2.
    """


class RankError(UserError):
    """A mistake that one rank alone can see, such as a bad row in its own part of the data."""


class NothingFitsError(UserError):
    """No placement of the tables fits into the memory of the ranks."""


class RunFailedError(Exception):
    """A run that cannot go on, though nothing was wrong with the command: one line, exit code 1."""


def first_problem(error: Any) -> str:
    """The first problem of a pydantic ValidationError as one line: where, what."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}".removeprefix(": ").replace("Value error, ", "")

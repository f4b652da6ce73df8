"""Exceptions for what a user can mend, or must know in one line."""

from typing import Any


class UserError(Exception):
    """A user's mistake: one line that says what, where, what is allowed, and the way out.

    The commands print it on stderr without a traceback and exit with code 2.
    """

    def __str__(self) -> str:
        """The line, with what would break or hide it, such as a newline in a file's name, as an escape."""
        return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in super().__str__())


class RankError(UserError):
    """A mistake that one rank alone can see, such as a bad row in its own part of the data."""


class NothingFitsError(UserError):
    """No placement of the tables fits into the memory of the ranks."""


class RunFailedError(Exception):
    """A run that cannot go on, though nothing was wrong with the command: one line, exit code 1.

    `speaker` is the rank that says it; None where all meet it alike.
    """

    def __init__(self, message: str, speaker: int | None = None) -> None:
        super().__init__(message)
        self.speaker = speaker


class BusyRunError(RunFailedError):
    """An earlier try of this job still holds the run's folder: a later one may find it free."""


class LostRanksError(RunFailedError):
    """Other ranks are gone or hang."""


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, or its type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def first_problem(error: Any) -> str:
    """The first problem of a pydantic ValidationError as one line: where, what."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}".removeprefix(": ").replace("Value error, ", "")

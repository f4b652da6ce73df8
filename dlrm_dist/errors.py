"""The one exception for mistakes that a user can make and mend."""


class UserError(Exception):
    """A user's mistake: one line that says what, where, what is allowed, and the way out.

    The commands print it on stderr without a traceback and exit with code 2.
    """


class RankError(UserError):
    """A mistake that one rank alone can see, such as a bad row in its own part of the data."""


class NothingFitsError(UserError):
    """No placement of the tables fits into the memory of the ranks."""

"""Which rank says what went wrong: so that it is read once, and on the host where it can be seen."""

import socket
import sys
import threading

from dlrm_dist import place
from dlrm_dist.errors import RankError, RunFailedError, UserError

_met = threading.Event()


def ranks_have_met() -> None:
    """From now on all ranks meet alike what none meets alone."""
    _met.set()


def say(error: UserError | RunFailedError) -> None:
    """Print the error's line on stderr if it is this rank's to say.

    What one rank alone has met, it says itself. What is refused before the ranks have met may be seen on one host
    alone, such as its GPUs or its files: the first rank of each host says it. Behind that, global rank 0 does.
    """
    rank, first_here = place.global_rank(), place.global_rank() - place.local_rank()
    where = ""
    if isinstance(error, RunFailedError) and error.speaker is not None:
        speaker = error.speaker
    elif isinstance(error, RankError):
        speaker = rank
    elif _met.is_set():
        speaker = 0
    else:
        speaker, where = first_here, f"on {socket.gethostname()}: " if first_here else ""
    if rank == speaker:
        print(f"error: {where}{error}", file=sys.stderr)

"""torchrun for training: its options, but the exit code is that of the ranks, and no traceback of the launcher.

75 (EX_TEMPFAIL) when it was asked to stop by SIGTERM or SIGINT, so that a scheduler may queue the job again; else the
code of the rank that failed first.
"""

import signal
import sys
from collections.abc import Sequence

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

STOPPED = 75


def main(arguments: Sequence[str] | None = None) -> int:
    """Run torchrun's command line; returns the exit code."""
    try:
        run.run(run.parse_args(arguments))
    except SignalException:
        return STOPPED
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:  # the rank has said why
            return failure.exitcode
        name = signal.Signals(-failure.exitcode).name
        print(
            f"error: rank {rank} was killed by {name} and no restart is left (--max_retries); if nobody did that, the "
            "system was out of memory. Continue with --train.resume auto",
            file=sys.stderr,
        )
        return 128 - failure.exitcode
    return 0


if __name__ == "__main__":
    sys.exit(main())

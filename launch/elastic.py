"""torchrun for training: its options, but the exit code is that of the ranks, and no traceback of the launcher.

75 (EX_TEMPFAIL) when it was asked to stop by SIGTERM or SIGINT, so that a scheduler may queue the job again; else the
code of the rank that failed first. Over several hosts (`--nnodes 2`, or `1:2` to go on with those that are left) the
agents meet at a store outside of them, and a watchdog ends or restarts the agent that has lost it.
"""

import signal
import sys
from collections.abc import Sequence

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousTimeoutError,
)

from launch import rendezvous
from launch.watchdog import Watchdog

STOPPED = 75


def main(arguments: Sequence[str] | None = None) -> int:
    """Run torchrun's command line; returns the exit code."""
    args = run.parse_args(arguments)
    endpoint = rendezvous.endpoint_of(args)
    if endpoint is None:
        return _run(args)
    rendezvous.prepare(args, endpoint)
    patience_s = rendezvous.join_timeout_s(args)
    if not rendezvous.await_store(endpoint, patience_s):
        return _fail(f"the rendezvous store {endpoint} was not there for {patience_s} s; {_WAY_OUT}")
    with Watchdog(endpoint, may_return=args.max_restarts > 0) as watchdog:
        try:
            return _run(args)
        except RendezvousConnectionError:
            watchdog.start_anew("lost the rendezvous store")
        except RendezvousTimeoutError:
            return _fail(f"too few hosts for --nnodes {args.nnodes} within {patience_s} s (--rdzv-conf join_timeout)")
        except RendezvousClosedError:
            return _fail(f"the job {args.rdzv_id} has ended on the other hosts; a new one needs another --rdzv-id")


_WAY_OUT = "start it on its host: python -m launch.store --port PORT"


def _run(args: object) -> int:
    try:
        run.run(args)
    except SignalException:
        return STOPPED
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:  # the rank has said why
            return failure.exitcode
        name = signal.Signals(-failure.exitcode).name
        _fail(
            f"rank {rank} was killed by {name} and no restart is left (--max_retries); if nobody did that, the "
            "system was out of memory. Continue with --train.resume auto"
        )
        return 128 - failure.exitcode
    return 0


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

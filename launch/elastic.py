"""torchrun for training: its options, but the exit code is that of the ranks, and no traceback of the launcher.

75 (EX_TEMPFAIL) when it was asked to stop by SIGTERM or SIGINT, so that a scheduler may queue the job again; else the
code of the rank that failed first. Over several hosts (`--nnodes 2`, or `1:2` to go on with those that are left) the
agents meet at a store outside of them, and a watchdog ends or restarts the agent that has lost it.
"""

import os
import signal
import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

from torch.distributed import DistError, run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousTimeoutError,
)
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler

from dlrm_dist import config
from dlrm_dist.errors import UserError, first_line
from dlrm_dist.interruption import EXIT_CODE
from launch import rendezvous
from launch.watchdog import Watchdog


def main(arguments: Sequence[str] | None = None) -> int:
    """Run torchrun's command line; returns the exit code."""
    args = run.parse_args(arguments)
    _give_time_to_save(args)
    try:
        endpoint = rendezvous.endpoint_of(args)
        return _run(args) if endpoint is None else _run_hosts(args, endpoint)
    except UserError as error:
        _fail(str(error))
        return 2


def _give_time_to_save(args: Namespace) -> None:
    """Ranks that are asked to stop get the run's `runtime.grace_s`, where the environment says nothing."""
    name = "launch.train" if args.module else str(Path(__file__).with_name("train.py"))
    script = args.training_script if args.module else str(Path(args.training_script).absolute())
    if script == name:
        with suppress(UserError):  # the ranks will say it
            grace_s = config.load(args.training_script_args).runtime.grace_s
            os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(grace_s))


def _run_hosts(args: Namespace, endpoint: rendezvous.Endpoint) -> int:
    """This host's agent of several."""
    rendezvous.prepare(args, endpoint)
    patience_s = rendezvous.join_timeout_s(args)
    try:
        problem = rendezvous.await_store(endpoint, args.rdzv_id, patience_s)
    except KeyboardInterrupt:
        return EXIT_CODE
    if problem:
        return _fail(f"the rendezvous store {endpoint} {problem}; start it on its host: {_START}")
    with Watchdog(endpoint, args.rdzv_id, may_return=args.max_restarts > 0) as watchdog:
        try:
            with patch.object(DynamicRendezvousHandler, "shutdown", _close):
                return _run(args)
        except (RendezvousConnectionError, DistError) as error:
            watchdog.start_anew(f"lost the rendezvous store, or a host while they met ({first_line(error)})")
        except RendezvousTimeoutError:
            return _fail(f"too few hosts for --nnodes {args.nnodes} within {patience_s:g} s (--rdzv-conf join_timeout)")
        except RendezvousClosedError:
            _fail(f"the job {args.rdzv_id} has ended on the other hosts; a new one needs another --rdzv-id")
            return rendezvous.verdict(endpoint, args.rdzv_id) or 1


_START = "python -m launch.store --port PORT"


_shutdown = DynamicRendezvousHandler.shutdown


def _close(handler: DynamicRendezvousHandler) -> bool:
    """Close the job, as its agent does when it ends: but not when it has only lost the others while they met."""
    if isinstance(sys.exc_info()[1], DistError):
        handler._stop_heartbeats()
        return True
    return bool(_shutdown(handler))


def _run(args: Namespace) -> int:
    try:
        run.run(args)
    except SignalException:
        return EXIT_CODE
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

"""Train and score a model: `python launch/train.py [--config FILE.toml] [--section.key value ...]`.

Run it alone (one rank), under torchrun, or through torchx; `--help` shows each key.
Exit codes: 0 done, 1 the run failed, 2 a mistake in the command, the config or the data, 75 asked to stop and saved.
"""

import os
import signal
import sys
import time

# Before torch is imported: DDP warns on every run of a choice that shard.py makes on purpose.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler's own start and stop

from dlrm_dist import config, runtime, tries
from dlrm_dist.errors import LostRanksError, RankError, RunFailedError, UserError
from dlrm_dist.interruption import EXIT_CODE, InterruptedRunError
from dlrm_dist.train import main

_AGENT_SECONDS = 5.0
"""An agent hears so much later than another, at most, that hosts have come."""

VERDICT = "exit code"
"""Noted by a try whose end another try would not change."""


def run() -> int:
    """Train; returns the exit code."""
    try:
        main(config.load(sys.argv[1:]))
    except UserError as error:
        # All ranks meet a wrong config alike, and one speaks; what one rank alone met, it says itself.
        _say(f"error: {error}", runtime.global_rank() if isinstance(error, RankError) else 0)
        return _final(2)
    except InterruptedRunError as error:
        _say(str(error), 0)
        return _stopped(error)
    except LostRanksError as error:
        _say(f"error: {error}", error.speaker)
        return 1
    except RunFailedError as error:
        _say(f"error: {error}", error.speaker)
        return _final(1)
    return 0


def _stopped(error: InterruptedRunError) -> int:
    if not tries.spans_hosts():
        return _final(EXIT_CODE)
    # Also where a host has come back, and each agent restarts its ranks: as theirs it does not count as a failure. A
    # user's signal ends the agents by itself.
    if not error.was_asked:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(_AGENT_SECONDS)
    return EXIT_CODE


def _say(line: str, rank: int) -> None:
    if runtime.global_rank() == rank:
        print(line, file=sys.stderr)


def _final(code: int) -> int:
    """The launcher may start the ranks again all the same: they will end with this code at once."""
    tries.note(VERDICT, str(code))
    return code


if __name__ == "__main__":
    verdict = tries.recall(VERDICT) if tries.is_restart() else None
    sys.exit(int(verdict) if verdict else run())

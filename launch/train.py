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

from dlrm_dist import config, place, speaking, tries
from dlrm_dist.errors import BusyRunError, LostRanksError, RunFailedError, UserError
from dlrm_dist.interruption import EXIT_CODE, InterruptedRunError
from dlrm_dist.train import main

_AGENT_SECONDS = 5.0
"""An agent hears so much later than another, at most, that hosts have come."""


def run() -> int:
    """Train; returns the exit code."""
    try:
        main(config.load(sys.argv[1:]))
    except UserError as error:
        speaking.say(error)
        return tries.final(2)
    except InterruptedRunError as error:
        if place.global_rank() == 0:
            print(error, file=sys.stderr)
        return _stopped(error)
    except (LostRanksError, BusyRunError) as error:
        speaking.say(error)
        return 1
    except RunFailedError as error:
        speaking.say(error)
        return tries.final(1)
    return 0


def _stopped(error: InterruptedRunError) -> int:
    if not tries.spans_hosts():
        return tries.final(EXIT_CODE)
    # Also where a host has come back, and each agent restarts its ranks: as theirs it does not count as a failure. A
    # user's signal ends the agents by itself.
    if not error.was_asked:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(_AGENT_SECONDS)
    return EXIT_CODE


if __name__ == "__main__":
    verdict = tries.verdict()
    sys.exit(run() if verdict is None else verdict)

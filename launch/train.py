"""Train and score a model: `python launch/train.py [--config FILE.toml] [--section.key value ...]`.

Run it alone (one rank), under torchrun, or through torchx; `--help` shows each key.
Exit codes: 0 done, 1 the run failed, 2 a mistake in the command, the config or the data, 75 asked to stop and saved.
"""

import os
import sys

# Before torch is imported: DDP warns on every run of a choice that shard.py makes on purpose.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

from dlrm_dist import config, runtime
from dlrm_dist.errors import RankError, RunFailedError, UserError
from dlrm_dist.interruption import EXIT_CODE, InterruptedRunError
from dlrm_dist.train import main

if __name__ == "__main__":
    try:
        main(config.load(sys.argv[1:]))
    except UserError as error:
        # All ranks meet a wrong config alike, and one speaks; what one rank alone met, it says itself.
        if runtime.global_rank() == 0 or isinstance(error, RankError):
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except InterruptedRunError as error:
        if runtime.global_rank() == 0:
            print(error, file=sys.stderr)
        sys.exit(EXIT_CODE)
    except RunFailedError as error:
        if runtime.global_rank() == 0:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(1)

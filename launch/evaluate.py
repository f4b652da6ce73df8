"""Score a trained run: `dlrm-dist evaluate`'s arguments, on the ranks that torchrun or torchx starts.

Exit codes: 0 done, 1 the scores are not finite or a rank was lost, 2 a mistake in the command or the data.
"""

import os
import sys

# Before torch is imported: see train.py.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

from dlrm_dist import tries
from dlrm_dist.cli import main


def run() -> int:
    """Score; returns the exit code."""
    code = main(["evaluate", *sys.argv[1:]])
    return tries.final(code) if code == 2 else code


if __name__ == "__main__":
    verdict = tries.verdict()
    sys.exit(run() if verdict is None else verdict)

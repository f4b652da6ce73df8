"""Score a trained run: `dlrm-dist evaluate`'s arguments, on the ranks that torchrun or torchx starts.

Exit codes: 0 done, 1 the scores are not finite or a rank was lost, 2 a mistake in the command or the data.
"""

import sys

from dlrm_dist.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))

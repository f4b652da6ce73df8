"""Examine the machines of a run: `dlrm-dist doctor`'s arguments, on the ranks that torchrun or torchx starts.

Exit codes: 0 well or warnings alone, 1 something is broken, 2 a mistake in the command.
"""

import sys

from dlrm_dist.cli import main

if __name__ == "__main__":
    sys.exit(main(["doctor", *sys.argv[1:]]))

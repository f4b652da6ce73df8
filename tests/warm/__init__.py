"""Python processes that have imported everything already: a rank starts in 0.1 s of processor time instead of 4.

A server imports the package, TorchRec and all, once, and forks for every program that it is asked to run. `client.py`
takes the place of the Python executable (torchrun's PYTHON_EXEC): it hands its arguments, environment, folder, standard
files and signals to such a fork, and ends as that does. Programs in namespaces or with modules of their own start a
real Python, and so do those of tests that are about processes and their signals, for which PYTHON_EXEC is taken away.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
VARIABLE = "PYTHON_EXEC"
"""Where torchrun and `dlrm_dist.local_ranks` look for the executable."""


@contextmanager
def server() -> Iterator[None]:
    """PYTHON_EXEC is the client meanwhile."""
    with tempfile.TemporaryDirectory() as folder:  # whose name is short, as a socket's must be
        yield from _served(Path(folder, "socket"), Path(folder, "python"))


def _served(socket: Path, client: Path) -> Iterator[None]:
    client.write_text(f"#!{sys.executable} -SEs\n{(HERE / 'client.py').read_text()}")
    client.chmod(0o755)
    words = [sys.executable, str(HERE / "server.py"), str(socket)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", "KINETO_LOG_LEVEL": "6"}
    # It ends with its standard input, so also when this process is killed.
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, start_new_session=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"listening\n"
        os.environ[VARIABLE] = str(client)
        yield
    finally:
        os.environ.pop(VARIABLE, None)
        process.terminate()  # it may still be importing
        process.communicate()

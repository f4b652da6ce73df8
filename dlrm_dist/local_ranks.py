"""Several ranks on this machine, as torchrun would start them."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from dlrm_dist import place
from dlrm_dist.errors import UserError


def ranks_wanted(given: int | None) -> int:
    """How many take part: as `--ranks` asks for, or as a launcher has started.

    Raises:
        UserError: less than one, or not as many as a launcher has started.
    """
    started = place.world_size()
    if given is not None and given < 1:
        raise UserError(f"--ranks is {given}; allowed: 1 or more")
    if place.is_rank() and given not in (None, started):
        raise UserError(f"--ranks is {given}, but a launcher has started {started} ranks; leave --ranks out")
    return started if given is None else given


def run_verb(words: Sequence[str], num_ranks: int) -> int:
    """Run `dlrm-dist WORDS` on so many ranks with this process's output; returns the exit code.

    That is 0, or the code of the first rank that failed; the others are then ended.
    """
    command = [python(), "-m", "dlrm_dist.cli", *words]
    with _ended() as processes:
        for env in environments(num_ranks, num_ranks):
            # In sessions of their own: an interrupt reaches this process alone, which ends them.
            processes.append(subprocess.Popen(command, env=env, start_new_session=True))
        codes = wait(processes)
    failed = [code for code in codes if code not in (0, None)]
    if not failed:
        return 0
    return next((code for code in failed if code > 0), 128 - failed[0])


def python() -> str:
    """The Python that runs the ranks: this one, or what PYTHON_EXEC names, as for torchrun."""
    return os.environ.get("PYTHON_EXEC", sys.executable)


def environments(world_size: int, local_world_size: int) -> list[dict[str, str]]:
    """The environment of each rank; hosts of `local_world_size` ranks are simulated if that is not all of them."""
    common = {
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(local_world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": "1",
    }
    return [
        {**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank % local_world_size)}
        for rank in range(world_size)
    ]


def wait(
    processes: Sequence[subprocess.Popen[bytes]],
    timeout: float = float("inf"),
    meanwhile: Callable[[], None] = lambda: None,
) -> list[int | None]:
    """Exit codes; when one fails or time is up, the others are killed, and their code is None.

    `meanwhile` is called now and then.
    """
    end = time.monotonic() + timeout
    while any(process.poll() is None for process in processes):
        if time.monotonic() > end or any(process.poll() for process in processes):
            time.sleep(1)  # the others may be about to say why
            break
        meanwhile()
        time.sleep(0.05)
    codes = [process.poll() for process in processes]
    _kill(processes)
    return codes


@contextmanager
def _ended() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that are killed when this one is interrupted or terminated."""
    processes: list[subprocess.Popen[bytes]] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        yield processes
    finally:
        _kill(processes)
        signal.signal(signal.SIGTERM, before)


def _kill(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])

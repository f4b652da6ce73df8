"""Runs a program on several real processes of this machine, with a timeout; a failure shows every rank's tail."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path


class RanksFailedError(Exception):
    """A rank failed or did not end in time; the message has the tail of what each wrote."""


def run_ranks(program: Path, world_size: int, *arguments: str, timeout: float = 120, local_world_size: int = 0) -> None:
    """Run `program` with `arguments` on `world_size` ranks over loopback.

    Args:
        program: a Python file.
        world_size: number of ranks.
        arguments: of the program.
        timeout: seconds for all of it.
        local_world_size: ranks of each simulated host; all ranks when not given.

    Raises:
        RanksFailedError: a rank failed, or they did not end in time.
    """
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder, f"rank{rank}.log") for rank in range(world_size)]
        port = str(_free_port())
        processes = []
        for rank, log in enumerate(logs):
            local = local_world_size or world_size
            env = {
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank % local),
                "WORLD_SIZE": str(world_size),
                "LOCAL_WORLD_SIZE": str(local),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": "1",
            }
            with log.open("w") as file:
                processes.append(
                    subprocess.Popen([sys.executable, str(program), *arguments], env=env, stdout=file, stderr=file)
                )
        codes = _wait(processes, timeout)
        tails = "\n".join(
            f"--- rank {rank}: {code}\n{log.read_text()[-3000:]}"
            for rank, (code, log) in enumerate(zip(codes, logs, strict=True))
        )
    if any(codes):
        raise RanksFailedError(f"ranks ended with {codes}\n{tails}")


def _wait(processes: list[subprocess.Popen[bytes]], timeout: float) -> list[int | str]:
    """Exit codes; when one fails or time is up, the others are killed."""
    end = time.monotonic() + timeout
    while any(process.poll() is None for process in processes):
        if time.monotonic() > end or any(process.poll() for process in processes):
            time.sleep(1)  # the others may be about to say why
            break
        time.sleep(0.05)
    polled = [process.poll() for process in processes]
    codes = ["killed" if code is None else code for code in polled]
    for process in processes:
        process.kill()
        process.wait()
    return codes


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])

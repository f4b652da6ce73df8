"""Runs a program on several real processes of this machine, with a timeout; a failure shows every rank's tail."""

import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from dlrm_dist.local_ranks import environments, python, wait


class RanksFailedError(Exception):
    """A rank failed or did not end in time; the message has the tail of what each wrote."""


def run_ranks(
    program: Path,
    world_size: int,
    *arguments: str,
    timeout: float = 120,
    local_world_size: int = 0,
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    """Run `program` with `arguments` on `world_size` ranks over loopback.

    Args:
        program: a Python file.
        world_size: number of ranks.
        arguments: of the program.
        timeout: seconds for all of it.
        local_world_size: ranks of each simulated host; all ranks when not given.
        meanwhile: called now and then while they run.

    Raises:
        RanksFailedError: a rank failed, or they did not end in time.
    """
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder, f"rank{rank}.log") for rank in range(world_size)]
        processes = []
        for env, log in zip(environments(world_size, local_world_size or world_size), logs, strict=True):
            with log.open("w") as file:
                processes.append(
                    subprocess.Popen([python(), str(program), *arguments], env=env, stdout=file, stderr=file)
                )
        codes = ["killed" if code is None else code for code in wait(processes, timeout, meanwhile)]
        tails = "\n".join(
            f"--- rank {rank}: {code}\n{log.read_text()[-3000:]}"
            for rank, (code, log) in enumerate(zip(codes, logs, strict=True))
        )
    if any(codes):
        raise RanksFailedError(f"ranks ended with {codes}\n{tails}")

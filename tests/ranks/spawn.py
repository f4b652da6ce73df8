"""Runs a function on several real processes over gloo, with a short timeout; a failure prints every rank's tail."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path


def run_ranks(program: Path, world_size: int, *arguments: str, timeout: float = 120, local_world_size: int = 0) -> None:
    """Run `program` with `arguments` on `world_size` ranks on loopback; raise if any rank fails or hangs."""
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
        raise AssertionError(f"ranks ended with {codes}\n{tails}")


def _wait(processes: list[subprocess.Popen[bytes]], timeout: float) -> list[int | str]:
    """Exit codes; when one fails or time is up, the others are killed."""
    import time

    end = time.monotonic() + timeout
    while any(process.poll() is None for process in processes):
        if time.monotonic() > end or any(process.poll() for process in processes):
            time.sleep(1)  # the others may be about to say why
            break
        time.sleep(0.05)
    codes = [process.poll() if process.poll() is not None else "killed" for process in processes]
    for process in processes:
        process.kill()
        process.wait()
    return codes


def _free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])

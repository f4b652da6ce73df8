"""How fast the ranks read the data and write to the run folder, and whether all hosts see the same run folder."""

import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

import torch.distributed as dist
from pyarrow import fs

from dlrm_dist.data import files
from dlrm_dist.data.files import File
from dlrm_dist.errors import UserError
from dlrm_dist.runtime import Session

_BLOCK = 8 << 20
_PREFIX = ".doctor-"
_SYNCED_BLOCKS = 4
"""Written between two syncs, so that a slow disk never has much left to do when the time is up."""
_SIGHT_SECONDS = 3.0
"""So long a file may take to be seen on the other hosts: NFS clients ask again after that."""


@dataclass(frozen=True)
class Transfer:
    """Bytes that a rank has moved."""

    bytes: int
    seconds: float
    problem: str = ""
    """Why it could not; empty if it could."""
    is_all: bool = False
    """Whether there was no more to move before time was up."""


def mb_s(transfers: Sequence[Transfer]) -> float:
    """Of ranks that moved bytes at the same time, together."""
    return sum(each.bytes for each in transfers) / max(*(each.seconds for each in transfers), 1e-9) / 1e6


def read(given: str, here: Session, lasting: float) -> Transfer:
    """Read this rank's share of the blocks of all files of `given`, for so many seconds at most. Collective."""
    found: list[File] = []
    problem = ""
    try:
        found = files.find_below(given)
        for file in found:
            _forget(file)
    except (UserError, OSError) as error:
        problem = str(error)
    dist.barrier(group=here.control)
    blocks = (block for number, block in enumerate(_blocks(found)) if number % here.world_size == here.global_rank)
    return Transfer(0, 0.0, problem) if problem else _for_so_long(lambda: _read_block(*next(blocks)), lasting)


def write(folder: Path, here: Session, lasting: float) -> Transfer:
    """Write a file into the folder for about so many seconds, and remove it. Collective."""
    dist.barrier(group=here.control)
    block = secrets.token_bytes(_BLOCK)
    try:
        with NamedTemporaryFile(dir=folder, prefix=_PREFIX) as file:
            return _for_so_long(lambda: _write_blocks(file.fileno(), block), lasting)
    except OSError as error:
        return Transfer(0, 0.0, f"{folder}: cannot be written: {error.strerror}")


def sees_the_same(folder: Path, here: Session) -> bool:
    """Whether this rank sees in the folder what global rank 0 writes there. Collective."""
    name = here.from_main(lambda: _PREFIX + secrets.token_hex(8))
    written = folder / name
    if here.is_main:
        written.write_text(name)
    dist.barrier(group=here.control)
    end = time.monotonic() + _SIGHT_SECONDS
    while not (seen := _holds(written, name)) and time.monotonic() < end:
        time.sleep(0.1)
    dist.barrier(group=here.control)
    if here.is_main:
        with suppress(OSError):
            written.unlink()
    return seen


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_text() == text
    except OSError:
        return False


def _for_so_long(work: Callable[[], int], lasting: float) -> Transfer:
    """Call what gives the bytes it moved until time is up or there is no more."""
    moved, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < lasting:
        try:
            moved += work()
        except StopIteration:
            return Transfer(moved, elapsed, is_all=True)
        except OSError as error:
            return Transfer(moved, elapsed, str(error))
    return Transfer(moved, time.perf_counter() - started)


def _blocks(found: Sequence[File]) -> Iterator[tuple[File, int]]:
    return ((file, start) for file in found for start in range(0, file.size, _BLOCK))


def _read_block(file: File, start: int) -> int:
    with file.open() as source:
        source.seek(start)
        return len(source.read(_BLOCK))


def _write_blocks(descriptor: int, block: bytes) -> int:
    written = sum(os.write(descriptor, block) for _ in range(_SYNCED_BLOCKS))
    os.fdatasync(descriptor)
    return written


def _forget(file: File) -> None:
    """Let a local file be read from the disk, not from memory."""
    if isinstance(file.filesystem, fs.LocalFileSystem):
        descriptor = os.open(file.path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)

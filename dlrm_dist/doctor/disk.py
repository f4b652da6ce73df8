"""How fast the ranks read the data and write to the run folder, and whether all hosts see the same run folder."""

import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile

import torch.distributed as dist
from pyarrow import fs

from dlrm_dist.data import files
from dlrm_dist.data.files import File
from dlrm_dist.errors import UserError
from dlrm_dist.runtime import Session

_BLOCK = 8 << 20
_PREFIX = ".doctor-"
_FIRST_PIECE, _LARGEST_PIECE = 1 << 20, 32 << 20
"""Written between two syncs: at first little, so that a slow disk never has much left to do when the time is up."""
_SHARE_OF_SPACE = 0.1
"""Of what is free, for all ranks together: storage may be memory, or nearly full."""
_PAGE = 4096
_PROBES = 64
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
    cached: float | None = None
    """Share that was in the page cache before; None where that cannot be told, as of an object store."""


def mb_s(transfers: Sequence[Transfer]) -> float:
    """Of ranks that moved bytes at the same time, together."""
    return sum(each.bytes for each in transfers) / max(*(each.seconds for each in transfers), 1e-9) / 1e6


def read(given: str, here: Session, lasting: float) -> Transfer:
    """Read this rank's share of the blocks of all files of `given`, for so many seconds at most. Collective."""
    own: list[tuple[File, int]] = []
    problem = ""
    try:
        found = files.find_below(given)
        own = [block for number, block in enumerate(_blocks(found)) if number % here.world_size == here.global_rank]
        for file in {id(file): file for file, _ in own}.values():
            _forget(file)
    except (UserError, OSError) as error:
        problem = str(error)
    dist.barrier(group=here.control)
    if problem:
        return Transfer(0, 0.0, problem)
    cached, blocks = cached_share(own), iter(own)
    return replace(_for_so_long(lambda: _read_block(*next(blocks)), lasting), cached=cached)


def write(folder: Path, here: Session, lasting: float) -> Transfer:
    """Write a file into the folder for about so many seconds, and remove it. Collective."""
    dist.barrier(group=here.control)
    return write_alone(folder, lasting, here.local_world_size)


def write_alone(folder: Path, lasting: float, sharing: int) -> Transfer:
    """The same without the others; `sharing` ranks of this host share the free space."""
    try:
        space = os.statvfs(folder)
        free = space.f_bavail * space.f_frsize
        most = int(free * _SHARE_OF_SPACE / sharing)
        if most < _FIRST_PIECE:
            return Transfer(0, 0.0, f"{folder}: is nearly full: {free >> 20:,} MiB are free")
        with TemporaryFile(dir=folder) as file:  # without a name: gone with this process, however that ends
            pieces = _pieces(secrets.token_bytes(min(most, _LARGEST_PIECE)), most)
            return _for_so_long(lambda: _write_synced(file.fileno(), next(pieces)), lasting)
    except OSError as error:
        return Transfer(0, 0.0, f"{folder}: cannot be written: {error.strerror}")


def sees_the_same(folder: Path, here: Session) -> bool:
    """Whether this rank sees in the folder what global rank 0 writes there. Collective."""
    name = here.from_main(lambda: _PREFIX + secrets.token_hex(8))
    written = folder / name
    here.from_main(lambda: _leave(written, name))
    end = time.monotonic() + _SIGHT_SECONDS
    while not (seen := _holds(written, name)) and time.monotonic() < end:
        time.sleep(0.1)
    dist.barrier(group=here.control)
    if here.is_main:
        with suppress(OSError):
            written.unlink()
    return seen


def _leave(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        reason = f"cannot be written: {error.strerror}; allowed: a folder that runs can be kept in; choose another"
        raise UserError(f"--storage {path.parent}: {reason}") from None


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


def _pieces(data: bytes, most: int) -> Iterator[memoryview]:
    """What to write, each piece as long as all before it together, up to `most` bytes in all."""
    done, size = 0, _FIRST_PIECE
    while done + size <= most:
        yield memoryview(data)[:size]
        done += size
        size = min(done, len(data))


def _write_synced(descriptor: int, piece: memoryview) -> int:
    written = os.write(descriptor, piece)
    os.fdatasync(descriptor)
    return written


def _forget(file: File) -> None:
    """Let a local file be read from the disk, not from memory."""
    if isinstance(file.filesystem, fs.LocalFileSystem):
        descriptor = os.open(file.path, os.O_RDONLY)
        try:
            os.fdatasync(descriptor)  # what was just prepared, and is not on the disk yet, cannot be forgotten
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def cached_share(blocks: Sequence[tuple[File, int]]) -> float | None:
    """Share of some of the blocks, spread over all, whose first page is in memory; None where that cannot be told.

    A page is read in a way that gives up where it would have to wait (Linux: RWF_NOWAIT).
    """
    found = []
    for file, start in blocks[:: -(-len(blocks) // _PROBES) or 1]:
        if not isinstance(file.filesystem, fs.LocalFileSystem):
            return None
        try:
            with Path(file.path).open("rb", buffering=0) as source:
                os.preadv(source.fileno(), [bytearray(_PAGE)], start, os.RWF_NOWAIT)
            found.append(True)
        except BlockingIOError:
            found.append(False)
        except OSError:  # a filesystem that cannot read in this way, or a file that is gone, as reading it will say
            return None
    return sum(found) / len(found) if found else None

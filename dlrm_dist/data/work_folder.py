"""The folder in which a dataset is made: hidden beside its place, kept by a kill, renamed when complete."""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dlrm_dist.errors import UserError

_REQUEST = "request.json"


@contextlib.contextmanager
def work_folder(out: Path, request: dict[str, Any] | None) -> Iterator[Path]:
    """A folder that becomes `out` at the end of the block.

    What a killed process left there is found again by the same request; by another one it is removed. An interrupt
    leaves the folder as it is, where there is a request; an error removes it, and folders above that were made for it.

    Args:
        out: must not exist.
        request: what is made, from what: for JSON. None: there is no going on from what is there.

    Raises:
        UserError: another process is making `out`, or it cannot be written.
    """
    work = place(out)
    made = [folder for folder in work.parents if not folder.exists()]
    try:
        work.mkdir(parents=True, exist_ok=True)
        with _locked(work, out):
            try:
                _take_over(work, request)
                yield work
                (work / _REQUEST).unlink()
                work.rename(out)
            except BaseException as error:
                if request is None or not isinstance(error, KeyboardInterrupt):
                    shutil.rmtree(work, ignore_errors=True)
                    _remove_empty(made)
                raise
    except OSError as error:
        _remove_empty(made)
        raise UserError(
            f"{out}: cannot be written: {error}; allowed: a folder on a disk with room for the rows three times; free "
            "or choose another one"
        ) from None


def place(out: Path) -> Path:
    """The folder in which `out` is made."""
    return out.parent / f".{out.name}.preparing"


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders, inner ones first, as far as they are there and nothing else came into them."""
    with contextlib.suppress(OSError):
        for folder in folders:
            if folder.exists():
                folder.rmdir()


@contextlib.contextmanager
def _locked(work: Path, out: Path) -> Iterator[None]:
    handle = os.open(work, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(
            f"{out}: another process is making it; allowed: one at a time; wait for that one or choose another folder"
        ) from None
    finally:
        os.close(handle)


def _take_over(work: Path, request: dict[str, Any] | None) -> None:
    """Empty the folder unless it was made for the same request."""
    path = work / _REQUEST
    with contextlib.suppress(OSError, ValueError):
        if request is not None and json.loads(path.read_text()) == json.loads(json.dumps(request)):
            return
    for each in work.iterdir():
        shutil.rmtree(each) if each.is_dir() else each.unlink()
    path.write_text(json.dumps(request))

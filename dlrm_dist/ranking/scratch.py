"""A temporary folder that all ranks share, under the run's."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from dlrm_dist.errors import UserError
from dlrm_dist.runtime import Session

_PREFIX, _LOCK = ".metrics-", "lock"


@contextmanager
def scratch(run: Path, here: Session) -> Iterator[Path]:
    """A folder under the run's that is gone afterwards; what a killed process left there goes too. Collective.

    Raises:
        UserError: it cannot be made, or a rank does not see it.
    """
    with ExitStack() as held:
        folder = here.from_main(lambda: _make(run, held))
        if here.agree(not folder.is_dir())[0]:
            raise UserError(
                f"{run}: not all ranks see this folder, and metrics.exact and metrics.group_by order rows in it; use a "
                "--run.folder that all hosts share, or leave these two out"
            )
        yield folder
        here.agree()  # from here on no rank reads


def _make(run: Path, held: ExitStack) -> Path:
    try:
        for leftover in run.glob(f"{_PREFIX}*"):
            _remove_if_left(leftover)
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=run)).absolute()
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise UserError(
            f"{run}: cannot be written to: {reason}; metrics.exact and metrics.group_by order rows there; allow that, "
            "or leave these two out"
        ) from None
    held.callback(partial(shutil.rmtree, folder, ignore_errors=True))
    held.enter_context(FileLock(folder / _LOCK, timeout=0))
    return folder


def _remove_if_left(folder: Path) -> None:
    """Its lock is held as long as its process lives."""
    try:
        with FileLock(folder / _LOCK, timeout=0):
            shutil.rmtree(folder, ignore_errors=True)
    except Timeout:
        return

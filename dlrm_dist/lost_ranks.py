"""Which rank was lost, when a collective fails: said in one line instead of a broken connection's address."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from dlrm_dist.errors import LostRanksError, first_line

_ANSWER_SECONDS = 3.0
"""A lost connection reaches all that wait for it at once; so much later every rank that lives has answered."""

_GLOO = ("gloo", "pair closure")
_TIMED_OUT = ("imed out", "timeout")
_LATE = "late"


@contextmanager
def named(store: dist.Store, rank: int, world_size: int, timeout_s: int) -> Iterator[None]:
    """Turn a failed collective inside into a LostRanksError that names the ranks which are gone, hang or failed.

    Each rank that fails notes its reason in `store`, each that was left alone notes that it lives; who has noted
    nothing is gone, or hangs.

    Args:
        store: of this try of the job, on all ranks.
        rank: this one.
        world_size: number of ranks.
        timeout_s: seconds that a collective was allowed.

    Raises:
        LostRanksError: a collective failed.
    """
    try:
        yield
    except Exception as error:
        if world_size == 1:
            raise
        if not _is_from_a_collective(error):
            _answer(store, rank, first_line(error))
            raise
        if any(each in str(error) for each in _TIMED_OUT):
            store.set(_LATE, "")
        silent, failed, hung = _roll_call(store, rank, world_size)
        speaker = min(set(range(world_size)) - set(silent) - set(failed))
        raise LostRanksError(_sentence(silent, failed, hung, timeout_s), speaker) from error


def _is_from_a_collective(error: Exception) -> bool:
    """Torch raises gloo's errors as plain RuntimeErrors."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(each in str(error) for each in _GLOO)
    )


def _roll_call(store: dist.Store, rank: int, world_size: int) -> tuple[list[int], dict[int, str], bool]:
    """The ranks that do not answer, those that failed by themselves with their reasons, whether a wait took too long.

    One rank's wait ends the connections of the others, which see only that.
    """
    end = time.monotonic() + _ANSWER_SECONDS
    try:
        _answer(store, rank, "")
        while True:
            here = [other for other in range(world_size) if store.check([str(other)])]
            if len(here) == world_size or time.monotonic() > end:
                break
            time.sleep(0.05)
        reasons = {other: store.get(str(other)).decode() for other in here}
        hung = store.check([_LATE])
    except RuntimeError:  # rank 0 keeps the store where no launcher does
        return [0], {}, True
    silent = [other for other in range(world_size) if other not in reasons]
    return silent, {other: reason for other, reason in reasons.items() if reason}, hung


def _answer(store: dist.Store, rank: int, reason: str) -> None:
    store.set(str(rank), reason)


def _sentence(silent: list[int], failed: dict[int, str], hung: bool, timeout_s: int) -> str:
    parts = [f"rank {rank} failed: {reason}" for rank, reason in failed.items()]
    if silent:
        ranks = f"rank{'s' * (len(silent) > 1)} {', '.join(map(str, silent))}"
        parts.append(
            f"{ranks} did not answer within {timeout_s} s (runtime.timeout_s): hung, stopped or cut off"
            if hung
            else f"{ranks} went away: killed, out of memory, or crashed"
        )
    return "; ".join(parts) or "the ranks lost each other's connections, though all of them live: a network fault"

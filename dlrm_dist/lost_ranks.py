"""Which rank was lost, when a collective fails: said in one line instead of a broken connection's address."""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import torch.distributed as dist

from dlrm_dist import tries, whereabouts
from dlrm_dist.errors import LostRanksError, first_line

_ANSWER_SECONDS = 3.0
"""A lost connection reaches all that wait for it at once; so much later every rank that lives has answered."""
_STORE_SECONDS = 5.0
"""A call to a store that is out of reach does not return: it is given up after so long."""

_GLOO = ("gloo", "pair closure")
_TIMED_OUT = ("imed out", "timeout")
_LATE = "late"
_CALLED, _SPEAKER = "called", "speaker"
_WAITS = "waits"
"""The answer of a rank's thread for a main thread that still waits; that of one which was left alone is empty."""
_LISTEN_SECONDS = 1.0
_JOIN_SECONDS = 1.0
"""A process may abort at its end while a thread is inside a call to the store."""


@dataclass(frozen=True)
class RollCall:
    """What the ranks that live have found out about the others.

    Attributes:
        silent: ranks that did not answer.
        failed: those that failed by themselves, with their reasons.
        speaker: the rank that called first, and says what was found.
        hung: whether a wait took too long; one rank's wait ends the connections of others, which see only that.
        hosts: of the ranks that are silent or failed, by rank, where they are known.
    """

    silent: Sequence[int]
    failed: dict[int, str]
    speaker: int
    hung: bool
    hosts: dict[int, str] = field(default_factory=dict)


@contextmanager
def named(store: dist.Store, rank: int, world_size: int, local_world_size: int, timeout_s: int) -> Iterator[None]:
    """Turn a failed collective inside into a LostRanksError that names the ranks which are gone, hang or failed.

    Each rank that fails notes its reason in `store`, each that was left alone notes that it lives; who has noted
    nothing is gone, or hangs. One whose main thread still waits, for a rank that was left alone, say, has a thread that
    answers for it; but not when a wait took too long, since a rank that hangs may have such a thread too.

    Args:
        store: of this try of the job, on all ranks.
        rank: this one.
        world_size: number of ranks.
        local_world_size: of this host; its ranks follow each other.
        timeout_s: seconds that a collective was allowed.

    Raises:
        LostRanksError: a collective failed.
    """
    if world_size == 1:
        yield
        return
    over = threading.Event()
    copy = store.clone()  # type: ignore[attr-defined]  # absent in the stubs
    listener = threading.Thread(target=_listen, args=(copy, rank, over), daemon=True)
    listener.start()
    try:
        store.set(_host(rank), socket.gethostname())
        yield
    except Exception as error:
        over.set()
        if not _is_from_a_collective(error):
            reason = first_line(error)
            _call(lambda: _answer(store, rank, reason))
            raise
        late = any(each in str(error) for each in _TIMED_OUT)
        found: list[RollCall | None] = []
        _call(lambda: found.append(_roll_call(store, rank, world_size, late)))
        where = whereabouts.of_error(error)
        call = found[0] if found else None
        if call is None:
            raise LostRanksError(
                f"{_cut_off(rank, world_size, local_world_size)}; it waited in {where}", rank
            ) from error
        raise LostRanksError(f"{_sentence(call, timeout_s)}; waited for in {where}", call.speaker) from error
    finally:
        over.set()
        listener.join(_JOIN_SECONDS)


def _listen(store: dist.Store, rank: int, over: threading.Event) -> None:
    """Answer the first roll call, when nothing took too long."""
    with suppress(RuntimeError):  # the store is gone, and with it the run
        while not over.wait(_LISTEN_SECONDS):
            if store.check([_CALLED]):
                if not store.check([_LATE]):
                    store.compare_set(str(rank), "", _WAITS)
                return


def _is_from_a_collective(error: Exception) -> bool:
    """Torch raises gloo's errors as plain RuntimeErrors."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(each in str(error) for each in _GLOO)
    )


def _call(work: Callable[[], None]) -> None:
    """Talk to the store, for as long as that may take."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(_ANSWER_SECONDS + _STORE_SECONDS)


def _roll_call(store: dist.Store, rank: int, world_size: int, late: bool) -> RollCall | None:
    """None if the store cannot tell."""
    end = time.monotonic() + _ANSWER_SECONDS
    try:
        if late:
            store.set(_LATE, "")
        store.set(_CALLED, "")
        _answer(store, rank, "")
        speaker = int(store.compare_set(_SPEAKER, "", str(rank)))
        while True:
            here = [other for other in range(world_size) if store.check([str(other)])]
            if len(here) == world_size or time.monotonic() > end:
                break
            time.sleep(0.05)
        reasons = {other: store.get(str(other)).decode() for other in here}
        silent = [other for other in range(world_size) if other not in reasons]
        failed = {other: reason for other, reason in reasons.items() if reason not in ("", _WAITS)}
        return RollCall(silent, failed, speaker, store.check([_LATE]), _hosts(store, [*silent, *failed]))
    except RuntimeError:
        if tries.spans_hosts():  # it is beside the ranks: none of them is to blame
            return None
        return RollCall([0], {}, speaker=1, hung=True)  # rank 0 keeps the store where no launcher does


def _hosts(store: dist.Store, ranks: Sequence[int]) -> dict[int, str]:
    return {rank: store.get(_host(rank)).decode() for rank in ranks if store.check([_host(rank)])}


def _host(rank: int) -> str:
    return f"host of {rank}"


def _answer(store: dist.Store, rank: int, reason: str) -> None:
    with suppress(RuntimeError):  # the store is gone: nobody asks any more
        store.set(str(rank), reason)


def _sentence(found: RollCall, timeout_s: int) -> str:
    parts = [f"{named_ranks([rank], found.hosts)} failed: {reason}" for rank, reason in found.failed.items()]
    if found.silent:
        ranks = named_ranks(found.silent, found.hosts)
        parts.append(
            f"{ranks} did not answer within {timeout_s} s (runtime.timeout_s): hung, stopped or cut off"
            if found.hung
            else f"{ranks} went away: killed, out of memory, or crashed"
        )
    return "; ".join(parts) or "the ranks lost each other's connections, though all of them live: a network fault"


def _cut_off(rank: int, world_size: int, local_world_size: int) -> str:
    first = rank // local_world_size * local_world_size
    others = [other for other in range(world_size) if not first <= other < first + local_world_size]
    return (
        f"rank {rank} on {socket.gethostname()} reaches neither {named_ranks(others, {})} nor the job's store: this "
        "host is cut off, or the store is gone"
    )


def named_ranks(ranks: Sequence[int], hosts: dict[int, str]) -> str:
    """Ranks in words, with their hosts where these are others than this one."""
    text = f"rank{'s' * (len(ranks) != 1)} {', '.join(map(str, ranks))}"
    where = sorted({hosts[rank] for rank in ranks if rank in hosts})
    return f"{text} on {', '.join(where)}" if where and where != [socket.gethostname()] else text

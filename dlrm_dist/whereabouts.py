"""Where a rank is in its step, told by its stack: in which collective it waits for others, or what else it does."""

import sys
import threading
import traceback
from collections.abc import Iterator
from types import CodeType
from typing import NamedTuple


class Place(NamedTuple):
    """What a rank is doing, and whether it is waiting for other ranks there."""

    what: str
    waits: bool


_BACKWARD = "_engine_run_backward"
_KNOWN = (
    ("Session.agree", "the agreement on stopping and saving"),
    ("Session.gather", "the gathering of a value of each rank"),
    ("Session.from_main", "the broadcast of what global rank 0 decides"),
    ("Meter.", "the sum of the losses"),
    ("Pace.", "the gathering of step times"),
    ("MetricState.", "the sum of the scores"),
    ("ClickMetrics.", "the sum of the scores"),
    ("Checkpoints.", "the writing of a checkpoint"),
    ("_summed", "the sums of batch normalisation"),
    ("SplitsAllToAll", "the exchange of ids"),
    ("KJTAllToAll", "the exchange of ids"),
    ("KJTSplitsAllToAll", "the exchange of ids"),
    ("All2All", "the exchange of embeddings"),
    ("ReduceScatter", "the exchange of embeddings"),
    ("AllGather", "the exchange of embeddings"),
    ("PooledEmbeddings", "the exchange of embeddings"),
    (_BACKWARD, "the all-reduce of gradients"),
)
"""How the functions' names begin, and which collective they wait for. The innermost one counts."""
_OURS = "dlrm_dist"


def of_error(error: BaseException) -> Place:
    """Where an error was raised."""
    return _place([frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)])


def of_main_thread() -> Place:
    """Where this process's main thread is now."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    codes = [each.f_code for each, _ in traceback.walk_stack(frame)] if frame else []
    return _place(codes[::-1])


def _place(codes: list[CodeType]) -> Place:
    """That of a stack, outermost function first."""
    inner = [*_names(codes)][::-1]
    is_inside = any(
        "torch/distributed/" in code.co_filename or "_engine_run_backward" in code.co_name for code in codes
    )
    known = next((what for name in inner for start, what in _KNOWN if name.startswith(start)), None)
    if is_inside and known:
        kind = " of their gradients" if known.endswith("embeddings") and _is_backward(inner) else ""
        return Place(known + kind, waits=True)
    own = next((code for code in reversed(codes) if f"/{_OURS}/" in code.co_filename), None)
    what = f"{own.co_qualname}, {own.co_filename.rpartition(f'/{_OURS}/')[2]}" if own else "its start"
    return Place(what, waits=is_inside)


def _names(codes: list[CodeType]) -> Iterator[str]:
    return (code.co_qualname for code in codes)


def _is_backward(names: list[str]) -> bool:
    return any(name.endswith(".backward") for name in names)

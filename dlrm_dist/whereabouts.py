"""Where a rank is in its step, told by its stack: in which collective it waits for others, or what else it does."""

import sys
import threading
import traceback
from collections.abc import Sequence
from types import CodeType

_BACKWARD = "_engine_run_backward"
_EMBEDDINGS = "the exchange of embeddings"
_COLLECTIVES = (
    ("Session.agree", "the agreement on stopping and saving"),
    ("Session.gather", "the gathering of a value of each rank"),
    ("Session.from_main", "the broadcast of what global rank 0 decides"),
    ("Meter.", "the sum of the losses"),
    ("MetricState.", "the sum of the scores"),
    ("Checkpoints.", "the writing of a checkpoint"),
    ("init_process_group", "the first meeting of all ranks"),
    ("new_group", "the first meeting of all ranks"),
    ("_summed", "the sums of batch normalisation"),
    ("SplitsAllToAll", "the exchange of ids"),
    ("KJTAllToAll", "the exchange of ids"),
    ("All2All", _EMBEDDINGS),
    ("ReduceScatter", _EMBEDDINGS),
    ("AllGather", _EMBEDDINGS),
    ("PooledEmbeddings", _EMBEDDINGS),
    (_BACKWARD, "the all-reduce of gradients"),
)
"""How the names of functions begin that wait for a collective, this project's and TorchRec's; the innermost counts."""
_OURS = "/dlrm_dist/"


def of_error(error: BaseException) -> str:
    """The collective in which an error was raised."""
    return collective([frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)])


def of_main_thread(waits: bool) -> str:
    """What this process's main thread does now: the collective in which it waits, if it does."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    codes = [each.f_code for each, _ in traceback.walk_stack(frame)][::-1] if frame else []
    return collective(codes) if waits else _work(codes)


def collective(codes: Sequence[CodeType]) -> str:
    """That of a stack, outermost function first, which waits for one."""
    names = [code.co_qualname for code in reversed(codes)]
    known = next((what for name in names for start, what in _COLLECTIVES if name.startswith(start)), None)
    if known == _EMBEDDINGS and any(name.endswith(".backward") for name in names):
        return "the exchange of embeddings' gradients"
    return known or _work(codes)


def _work(codes: Sequence[CodeType]) -> str:
    if any(code.co_name == _BACKWARD for code in codes):
        return "the backward pass"
    own = next((code for code in reversed(codes) if _OURS in code.co_filename), None)
    return f"{own.co_qualname} ({own.co_filename.rpartition(_OURS)[2]})" if own else "its start"

"""How long this rank's main thread waits for other ranks, and since when it does now.

It waits in `Work.wait`, by which Python waits for any collective, and behind a backward, where DDP waits in C++ for the
sums of the gradients. Collectives on a GPU are waited for by the GPU, not by this thread: what waits there counts as
the rank's own time, and all ranks look alike.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import nn

_queue = torch.autograd.Variable._execution_engine.queue_callback


class Waiting:
    """Seconds that the main thread has waited, while `measured`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.since: float | None = None
        """Of the monotonic clock; None while it does not wait."""

    @contextmanager
    def measured(self, model: nn.Module) -> Iterator[None]:
        """Measure inside, where `model` gives a loss first, on which `backward` is called."""
        wait, main = dist.Work.wait, threading.get_ident()

        def timed_wait(work: dist.Work, *arguments: Any) -> Any:
            if threading.get_ident() != main:
                return wait(work, *arguments)
            self._begin()
            result = wait(work, *arguments)  # an exception leaves `since` as it is: the run ends with it
            self._end()
            return result

        hook = model.register_forward_hook(self._behind_forward)
        try:
            with patch.object(dist.Work, "wait", timed_wait):
                yield
        finally:
            hook.remove()

    def _behind_forward(self, _model: nn.Module, _arguments: Any, outputs: Any) -> None:
        loss = outputs[0]
        if loss.requires_grad:
            loss.register_hook(self._in_backward)

    def _in_backward(self, _gradient: torch.Tensor) -> None:
        """Runs first in a backward: what it queues runs behind all gradients, before what DDP queues later."""
        _queue(self._behind_gradients)

    def _behind_gradients(self) -> None:
        self._begin()
        _queue(self._end)  # behind DDP's own

    def _begin(self) -> None:
        self.since = time.monotonic()

    def _end(self) -> None:
        if self.since is not None:
            self.seconds += time.monotonic() - self.since
        self.since = None

"""Where a training step's time goes, by PyTorch's profiler: the parts that `planning.step` predicts, measured.

Every report's last steps are profiled. Each moment of the training thread belongs to the innermost operation that is
known here, so the parts add up to the step; what belongs to none is overhead (Python, launching operations).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

STEPS = 3
"""Steps that are profiled before each report."""
_STEP = "## train step ##"

_PARTS_OF_OPERATIONS = {
    "## next_batch": "input",
    "## copy_batch_to_gpu": "copy",
    "## start_sparse_data_dist": "id_exchange",
    "## wait_sparse_data_dist": "id_exchange",
    "## runtime_forward_assemble_KJT": "id_exchange",
    "[lookup]": "lookup",
    "[output_dist": "forward_exchange",
    "## EmbeddingBagCollectionAwaitable": "forward_exchange",
    "## forward": "dense_forward",
    "## backward": "dense_backward",
    "## micro-batch backward": "dense_backward",
    "torch::autograd::CppNode<SplitLookup": "update",
    "c10d::allreduce_": "all_reduce",
    "torch::distributed::reducer": "all_reduce",
    "## zero_grad": "dense_optimizer",
    "## optimizer": "dense_optimizer",
}
"""How the operations of TorchRec, FBGEMM and DDP begin, and which part of the step they are."""
_EXCHANGES = ("All2All_", "ReduceScatter", "AllGather")
"""How TorchRec's exchanges of embeddings begin; forward they lie inside of what is known by its own name."""
_COMMUNICATION = ("id_exchange", "forward_exchange", "backward_exchange", "all_reduce")
_INPUT = ("input", "copy")


def verdict(parts: dict[str, float]) -> str:
    """What bounds a step of these milliseconds by part: input, communication, or compute."""
    bounds = {
        "input": sum(parts.get(part, 0.0) for part in _INPUT),
        "communication": sum(parts.get(part, 0.0) for part in _COMMUNICATION),
    }
    bounds["compute"] = sum(parts.values()) - sum(bounds.values())
    return max(bounds, key=lambda name: bounds[name])


class StepSplit:
    """Profiles the last steps before each report; does nothing unless it is wanted."""

    def __init__(self, wanted: bool, every: int, device: torch.device, trace: Path) -> None:
        """Take whether to profile, steps between reports, the rank's device, the file for the first steps' trace."""
        self.milliseconds: dict[str, float] = {}
        """Of a step, by part: the mean of the steps last profiled. Empty until there were some."""
        self._wanted, self._every, self._cuda, self._trace = wanted, every, device.type == "cuda", trace
        self._profiler: profile | None = None

    def of(self, step_ms: float) -> dict[str, float]:
        """The parts of a step that takes so long when it is not profiled, by the shares of those that were."""
        profiled = sum(self.milliseconds.values())
        return {part: step_ms * each / profiled for part, each in self.milliseconds.items()}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Around all steps."""
        try:
            yield
        finally:
            if self._profiler is not None:
                self._profiler.stop()

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around a step, whose number counts from 1."""
        if not self._wanted:
            yield
            return
        if self._profiler is None and -number % self._every < STEPS:
            kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._cuda else [])]
            self._profiler = profile(activities=kinds)
            self._profiler.start()
        with record_function(_STEP):
            yield
        if number % self._every == 0 and self._profiler is not None:
            self._profiler.stop()
            self._take(self._profiler)
            self._profiler = None

    def _take(self, profiler: profile) -> None:
        self.milliseconds = split(profiler.events() or [], self._cuda)
        if not self._trace.exists():
            self._trace.parent.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(self._trace))


def split(events: Iterable[FunctionEvent], cuda: bool = False) -> dict[str, float]:
    """Milliseconds of a step by part, the mean of the profiled steps.

    On CUDA a part's time is that of its kernels and copies, and `overhead` what is left of the step: less than nothing
    where streams overlap.
    """
    steps = [event for event in events if event.name == _STEP and not event.is_async]
    total: dict[str, float] = {}
    for step in steps:
        for part, microseconds in _moments(step, "overhead", cuda):
            total[part] = total.get(part, 0.0) + microseconds
    if cuda:
        total["overhead"] = sum(step.time_range.elapsed_us() for step in steps) - sum(total.values())
    return {part: microseconds / len(steps) / 1e3 for part, microseconds in total.items()}


def _moments(event: FunctionEvent, part: str, cuda: bool) -> Iterator[tuple[str, float]]:
    """Microseconds of an operation and of those inside it, each with its part of the step."""
    part = _part(event.name) or part
    children = event.cpu_children
    if cuda:
        yield part, event.self_device_time_total
    else:
        own = event.time_range.elapsed_us() - sum(child.time_range.elapsed_us() for child in children)
        waited = 0.0
        if event.name.startswith("## backward") and children:  # behind the last gradient it waits for the all-reduce
            waited = event.time_range.end - max(child.time_range.end for child in children)
            yield "all_reduce", waited
        yield part, own - waited
    for child in children:
        yield from _moments(child, part, cuda)


def _part(name: str) -> str | None:
    if name.startswith(_EXCHANGES) and name.endswith("Backward"):
        return "backward_exchange"
    return next((part for start, part in _PARTS_OF_OPERATIONS.items() if name.startswith(start)), None)

"""The state of a sharded task by plan-independent names, and loading it into a task of any plan."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor

from dlrm_dist.checkpoint.storage import Reader
from dlrm_dist.errors import UserError
from dlrm_dist.runtime import Session
from dlrm_dist.shard import ShardedTask

MODEL, OPTIMIZER, RNG, NOTES = "model.", "optim.", "rng.", "notes."
_SECOND_NAMES = {"sum": "moment1", "momentum1": "moment1", "exp_avg": "moment1", "exp_avg_sq": "moment2"}
"""One name for what the fused optimizers and torch's call differently: a table may change from one to the other."""

COLUMN_MOMENTS = (
    "row-wise Adagrad keeps a moment for each part of a row that is cut by columns, and these cannot be told apart or "
    "put together: use the same sharding type and column parts for this table as before"
)

SEGMENTS = "._output_segments_tensor"
"""How the name of the buffer ends that says where the ranks' parts of a table with managed collisions begin."""

State = dict[str, Tensor | ShardedTensor]


def state_of(sharded: ShardedTask) -> State:
    """All weights and optimizer state by plan-independent names; loading into these tensors changes the task."""
    state = weights_of(sharded)
    for parameter, values in sharded.optimizer.state_dict()["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor | ShardedTensor):
                short = name.rpartition(".")[2]
                state[f"{OPTIMIZER}{parameter}.{_SECOND_NAMES.get(short, short)}"] = _one_axis(value)
    return state


def weights_of(sharded: ShardedTask) -> State:
    """The weights alone, by the same names."""
    return {f"{MODEL}{key}": value for key, value in sharded.model.state_dict().items()}


def random_state(here: Session) -> State:
    """This rank's random generators, under names of its own."""
    state: State = {f"{RNG}{here.global_rank}.cpu": torch.get_rng_state()}
    if here.device.type == "cuda":
        state[f"{RNG}{here.global_rank}.cuda"] = torch.cuda.get_rng_state(here.device)
    return state


def restore_random_state(here: Session, path: Path) -> None:
    """Set this rank's generators as they were saved; a rank that was not there then keeps its own. Collective."""
    reader = Reader(path)
    saved = reader.read_metadata().state_dict_metadata
    wanted = {key: value for key, value in random_state(here).items() if key in saved}
    dcp.load(wanted, storage_reader=reader)
    for key, value in wanted.items():
        if key.endswith(".cpu"):
            torch.set_rng_state(value)
        else:
            torch.cuda.set_rng_state(value, here.device)


def load(sharded: ShardedTask, path: Path, step: int) -> None:
    """Load a checkpoint's state into a task of any plan. Collective.

    Args:
        sharded: the task.
        path: the checkpoint.
        step: its completed steps; for optimizers that count them, where the saving one did not.

    Raises:
        UserError: a tensor is missing or has another size.
    """
    state = state_of(sharded)
    counters = {key for key in state if key.endswith(".step")}
    sharded.optimizer.set_optimizer_step(step)  # fused Adam counts by itself, outside of its state
    for key in counters - _load(state, path, counters):  # a table that was fused, whose optimizer counts no steps
        counter = state[key]
        assert isinstance(counter, Tensor)
        counter.fill_(step)


def load_weights(sharded: ShardedTask, path: Path) -> None:
    """Load a checkpoint's weights alone, for a task that will not be trained. Collective.

    Raises:
        UserError: a tensor is missing or has another size.
    """
    _load(weights_of(sharded), path, set())


def _load(state: State, path: Path, counters: set[str]) -> set[str]:
    """Fill the tensors of `state`, of which `counters` may be missing; returns the names that were there."""
    reader = Reader(path)
    saved = reader.read_metadata().state_dict_metadata
    # A rank knows the tables that lie on it, so one may see what others do not; all must refuse alike.
    problems: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, _problem(state, saved, counters))
    for problem in problems:
        if problem:
            raise UserError(f"{path}: {problem}")
    segments = {key: value.clone() for key, value in state.items() if key.endswith(SEGMENTS)}
    dcp.load({key: value for key, value in state.items() if key in saved}, storage_reader=reader)
    for key, here in segments.items():  # replicated: all ranks refuse alike
        problem = other_ranks(key, state[key], here)
        if problem:
            raise UserError(f"{path}: {problem}")
    return state.keys() & saved.keys()


def other_ranks(key: str, before: Tensor, here: Tensor) -> str | None:
    """Why ids of a table with managed collisions would not find their rows, if they would not.

    Args:
        key: of where the ranks' parts of the table begin.
        before: its saved value, int64 [1025], -1 behind the last.
        here: its value of the ranks at hand.
    """
    if torch.equal(before.cpu(), here.cpu()):
        return None
    ranks = [int((each >= 0).sum()) - 1 for each in (before, here)]
    return (
        f"{key.split('.')[-2]} has managed collisions, whose ids are bound to {ranks[0]} ranks, and here are "
        f"{ranks[1]}; use as many ranks"
    )


def _problem(state: State, saved: dict[str, Any], counters: set[str]) -> str | None:
    """Why this rank's tensors cannot be loaded, if they cannot."""
    for key, value in state.items():
        size, here = getattr(saved.get(key), "size", None), size_of(value)
        if size is None and key not in counters:
            return f"has no {key}; it is of another model or optimizer, and cannot be continued"
        if size is not None and list(size) != here:
            return f"{key} has size {list(size)}, here {here}; {_why(key)}"
    return None


def size_of(value: Tensor | ShardedTensor) -> list[int]:
    """Of the whole tensor."""
    return list(value.metadata().size if isinstance(value, ShardedTensor) else value.size())


def _why(key: str) -> str:
    if key.startswith(OPTIMIZER):
        return COLUMN_MOMENTS
    return "continue with the model that was saved, or start from its weights: --model.init_from"


def _one_axis(value: Tensor | ShardedTensor) -> Tensor | ShardedTensor:
    """A moment a row as [rows]: the replicated row-wise Adagrad has [rows, 1], the fused one [rows]."""
    if isinstance(value, Tensor) and not isinstance(value, ShardedTensor) and value.dim() == 2 and value.shape[1] == 1:
        return value.view(-1)
    return value

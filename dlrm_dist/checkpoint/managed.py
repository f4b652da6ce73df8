"""Of tables with managed collisions a checkpoint has weights, map, and the notes of ids that were not yet counted."""

from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp

from dlrm_dist.checkpoint.state import NOTES, State
from dlrm_dist.checkpoint.storage import Reader
from dlrm_dist.models.managed import ManagedIds
from dlrm_dist.runtime import Session
from dlrm_dist.shard import ShardedTask

_STEPS = "steps"


def notes_of(sharded: ShardedTask, here: Session) -> State:
    """This rank's notes, under names of its own; empty where no table has managed collisions."""
    state: State = {}
    for table, ids in _maps(sharded).items():
        prefix = f"{NOTES}{here.global_rank}.{table}."
        state |= {f"{prefix}{name}": value.clone() for name, value in ids.notes().items() if len(value)}
        state[f"{prefix}{_STEPS}"] = torch.tensor([ids.steps_since_count()])
    return state


def restore_notes(sharded: ShardedTask, here: Session, path: Path) -> None:
    """Go on with this rank's notes as they were saved, once the maps are loaded. Collective.

    A checkpoint that was rewritten (`dlrm-dist checkpoint reshard`) has none: what was noted is forgotten.
    """
    maps = _maps(sharded)
    if not maps:
        return
    reader = Reader(path)
    saved = reader.read_metadata().state_dict_metadata
    mine = {key: value for key, value in saved.items() if key.startswith(f"{NOTES}{here.global_rank}.")}
    state = {key: torch.empty(value.size, dtype=torch.int64) for key, value in mine.items()}  # type: ignore[union-attr]
    dcp.load(state, storage_reader=reader)
    for table, ids in maps.items():
        prefix = f"{NOTES}{here.global_rank}.{table}."
        notes = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        steps = notes.pop(_STEPS, torch.zeros(1))
        ids.restore(notes, int(steps))


def _maps(sharded: ShardedTask) -> dict[str, ManagedIds]:
    """The maps by table; every rank has a part of each."""
    modules = sharded.model.named_modules()
    return {name.rpartition(".")[2]: each for name, each in modules if isinstance(each, ManagedIds)}

"""One rank of the proof that checkpoints fit any number of ranks and any plan: saves, or loads what others saved.

A job trains a few steps with each plan of this world size and saves, or loads each wanted checkpoint under each plan,
compares all weights and optimizer state with what was saved, and trains on beside it.
"""

import json
import os
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from pydantic import BaseModel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from dlrm_dist.checkpoint import state as states
from dlrm_dist.checkpoint.storage import Writer
from dlrm_dist.errors import UserError
from dlrm_dist.runtime import Session, session
from dlrm_dist.sections import ModelSection, OptimizerSection, RuntimeSection, ShardingName
from dlrm_dist.shard import ShardedTask
from dlrm_dist.verify.gather import whole
from dlrm_dist.verify.worker import Job, build

STEPS = 3
"""Before the checkpoint, and behind it."""
RATES = {"sgd": (1.0, 0.1), "adagrad": (0.05, 0.05), "rowwise_adagrad": (0.05, 0.05)}
MODEL = ModelSection(embedding_dim=16, bottom_mlp=(16, 16), top_mlp=(16, 1))
FEATURES = [("A", 400), ("B", 96), ("C", 64)]


class Moves(BaseModel):
    """What the ranks of one world size do: save under each plan, or load (from, under) pairs."""

    folder: Path
    optimizer: str
    saves: list[ShardingName] = []
    loads: list[tuple[str, ShardingName]] = []


def main(jobs_file: str) -> None:
    """Do all moves; global rank 0 writes what came of the loads beside the jobs, as JSON."""
    warnings.simplefilter("ignore", FutureWarning)
    moves = Moves.model_validate_json(Path(jobs_file).read_text())
    found: list[dict[str, Any]] = []
    with session(RuntimeSection(device="cpu", timeout_s=60, threads=1)) as here:
        for kind in moves.saves:
            save(moves, kind, here)
        for kind in dict.fromkeys(kind for _, kind in moves.loads):
            job, sharded = _built(moves, kind, here)
            for name in (name for name, under in moves.loads if under == kind):
                found.append({"from": name, "under": kind, **load(moves, name, job, sharded, here)})
        if here.is_main:
            Path(jobs_file).with_suffix(".out.json").write_text(json.dumps(found))


def save(moves: Moves, kind: ShardingName, here: Session) -> None:
    """Train and save, with the whole state and the next losses beside the checkpoint. Collective."""
    job, sharded = _built(moves, kind, here)
    _losses(job, sharded, here, 0)
    final = moves.folder / f"{here.world_size}-{kind}"
    temporary = final.with_suffix(".tmp")
    dcp.save(states.state_of(sharded), storage_writer=Writer(temporary, partial(os.rename, temporary, final)))
    saved = whole(states.state_of(sharded))
    losses = _losses(job, sharded, here, STEPS)
    if here.is_main:
        torch.save({"state": saved, "losses": losses}, final.with_suffix(".pt"))


def load(moves: Moves, name: str, job: Job, sharded: ShardedTask, here: Session) -> dict[str, Any]:
    """Load a checkpoint and train on: how far state and losses are from those that were saved. Collective."""
    expected = torch.load(moves.folder / f"{name}.pt", weights_only=True)
    try:
        states.load(sharded, moves.folder / name, STEPS)
    except UserError as error:
        return {"refused": str(error)}
    state = whole(states.state_of(sharded))
    losses = _losses(job, sharded, here, STEPS)
    shared = state.keys() & expected["state"].keys()
    apart = [(state[key].double() - expected["state"][key].double()).abs().max().item() for key in shared]
    return {
        "tensors": len(shared),
        "missing": sorted(key for key in state.keys() ^ expected["state"].keys() if not key.endswith(".step")),
        "state": max(apart, default=0.0),
        "losses": max(abs(a - b) for a, b in zip(losses, expected["losses"], strict=True)),
        "learned": abs(losses[-1] - losses[0]),
    }


def _built(moves: Moves, kind: ShardingName, here: Session) -> tuple[Job, ShardedTask]:
    job = Job(
        name=kind,
        model=MODEL,
        optimizer=OptimizerSection.model_validate({"sparse": moves.optimizer, "dense": "adagrad", "eps": 1e-4}),
        num_dense=4,
        features=FEATURES,
        types=[kind] * len(FEATURES),
        comm_precision="fp32",
        rates=RATES[moves.optimizer],
    )
    return job, build(job, here)


def _losses(job: Job, sharded: ShardedTask, here: Session, first: int) -> list[float]:
    """Train `STEPS` steps from step `first` on; the mean loss of each. Collective."""
    problem = job.problem()
    pipeline = TrainPipelineSparseDist(sharded.model, sharded.optimizer, here.device)
    batches = (problem.batch(step, here.global_rank, here.world_size) for step in range(first, first + STEPS))
    found = []
    for _ in range(STEPS):
        loss = pipeline.progress(batches)[0].double() / here.world_size
        dist.all_reduce(loss)
        found.append(loss.item())
    pipeline.detach()
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])

"""One rank of the sharded side: trains each case and leaves whole weights and optimizer state."""

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from dlrm_dist.models.build import build_model
from dlrm_dist.models.shape import Feature, ModelShape
from dlrm_dist.models.task import ClickTask
from dlrm_dist.optim import Optimizers
from dlrm_dist.planning.cluster import load_cluster
from dlrm_dist.planning.constraints import Rule
from dlrm_dist.planning.planner import Request, make_plan
from dlrm_dist.planning.subject import make_subject
from dlrm_dist.planning.torchrec_plan import to_torchrec
from dlrm_dist.runtime import Session, session
from dlrm_dist.sections import ModelSection, OptimizerSection, RuntimeSection, ShardingName
from dlrm_dist.shard import ShardedTask, shard
from dlrm_dist.verify.cases import BATCH_SIZE
from dlrm_dist.verify.gather import whole
from dlrm_dist.verify.problem import STEPS, Problem


class Job(BaseModel):
    """A case for the ranks: sections of a config, the tables' types, the learning rates of tables and layers."""

    name: str
    model: ModelSection
    optimizer: OptimizerSection
    num_dense: int
    features: list[tuple[str, int]]
    types: list[ShardingName]
    comm_precision: str
    rates: tuple[float, float]

    def problem(self) -> Problem:
        """The model's shape and batches."""
        features = tuple(Feature(name, rows) for name, rows in self.features)
        return Problem(self.model, ModelShape(self.num_dense, features))


class Jobs(BaseModel):
    """All cases of one layout."""

    jobs: list[Job]


def build(job: Job, here: Session) -> ShardedTask:
    """The case's model, sharded. Collective."""
    optimizer = job.optimizer.model_copy(
        update={"sparse_learning_rate": job.rates[0], "dense_learning_rate": job.rates[1]}
    )
    task = ClickTask(build_model(job.model, job.num_dense, job.features, 0, here.device))
    rules = tuple(
        Rule(pattern=table.name, sharding_types=(kind,))
        for table, kind in zip(job.problem().tables, job.types, strict=True)
    )
    cluster = load_cluster(f"cpu:{here.world_size // here.local_world_size}x{here.local_world_size}")
    request = Request(BATCH_SIZE, (), rules, None, job.comm_precision)
    plan = make_plan(make_subject(job.model, optimizer, job.problem().shape), cluster, request)
    return shard(
        task,
        to_torchrec(plan),
        here.device,
        Optimizers(optimizer, 0.0),
        seed=0,
        comm_precision=job.comm_precision,
    )


def run(job: Job, here: Session) -> dict[str, Any]:
    """Train a case. Collective."""
    problem, sharded = job.problem(), build(job, here)
    initial = whole(sharded.model.state_dict())
    pipeline = TrainPipelineSparseDist(sharded.model, sharded.optimizer, here.device)
    batches = (problem.batch(step, here.global_rank, here.world_size) for step in range(STEPS))
    pipeline.progress(batches)
    first = whole(sharded.model.state_dict())
    for _ in range(1, STEPS):
        pipeline.progress(batches)
    fused = sharded.model.fused_optimizer.state_dict()["state"]
    moments = {key: value for values in fused.values() for key, value in values.items() if key.endswith("momentum1")}
    final = whole(sharded.model.state_dict())
    return {"initial": initial, "first": first, "final": final, "moments": whole(moments)}


_DONE = ".done"
"""Ends the name of a file beside the results, which has a byte for each case that is done."""


def number_done(out: str) -> int:
    """How many cases a worker has done whose results are going to be in `out`."""
    path = Path(out + _DONE)
    return path.stat().st_size if path.exists() else 0


def main(jobs_file: str, out: str) -> None:
    """Run all cases; global rank 0 writes the results."""
    warnings.simplefilter("ignore", FutureWarning)
    jobs = Jobs.model_validate_json(Path(jobs_file).read_text()).jobs
    with session(RuntimeSection(device="cpu", timeout_s=60, threads=1)) as here:
        results = {}
        for job in jobs:
            results[job.name] = run(job, here)
            if here.is_main:
                with Path(out + _DONE).open("ab") as done:
                    done.write(b".")
        if here.is_main:
            torch.save(results, out)


if __name__ == "__main__":
    main(*sys.argv[1:])

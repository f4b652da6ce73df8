"""One rank of the optimizers' test: trains each case, sharded, and saves losses and whole weights."""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dlrm_dist.models.build import build_model
from dlrm_dist.models.shape import Feature, ModelShape
from dlrm_dist.models.task import ClickTask
from dlrm_dist.optim import Optimizers
from dlrm_dist.pipeline import pipeline_of
from dlrm_dist.planning.cluster import load_cluster
from dlrm_dist.planning.planner import Request, make_plan
from dlrm_dist.planning.subject import make_subject
from dlrm_dist.planning.torchrec_plan import to_torchrec
from dlrm_dist.runtime import Session, session
from dlrm_dist.sections import ModelSection, OptimizerSection, RuntimeSection
from dlrm_dist.shard import shard
from dlrm_dist.verify.cases import BATCH_SIZE
from dlrm_dist.verify.gather import whole
from dlrm_dist.verify.problem import Problem

PROBLEM = Problem(
    ModelSection(embedding_dim=8, bottom_mlp=(16, 8), top_mlp=(16, 1)),
    ModelShape(4, (Feature("A", 400), Feature("B", 96), Feature("C", 50))),
)
STEPS = 12


def run(case: dict[str, Any], here: Session) -> dict[str, Any]:
    optimizer, shape = OptimizerSection(**case["optimizer"]), PROBLEM.shape
    features = [(feature.name, feature.rows) for feature in shape.features]
    model = build_model(PROBLEM.model, shape.num_dense, features, 0, here.device)
    subject = make_subject(PROBLEM.model, optimizer, shape)
    plan = make_plan(subject, load_cluster(f"cpu:1x{here.world_size}"), Request(BATCH_SIZE, tuple(case["types"])))
    task = ClickTask(model, micro_batches=case["micro_batches"])
    sharded = shard(task, to_torchrec(plan), here.device, Optimizers(optimizer, 0.05), seed=0)
    initial = whole(sharded.model.state_dict())
    pipeline = pipeline_of(sharded, here.device)
    batches = (PROBLEM.batch(step, here.global_rank, here.world_size) for step in range(STEPS))
    losses = torch.stack([pipeline.progress(batches)[0] for _ in range(STEPS)]) / here.world_size
    dist.all_reduce(losses)
    return {"initial": initial, "final": whole(sharded.model.state_dict()), "losses": losses}


def main(cases_file: str, out: str) -> None:
    warnings.simplefilter("ignore", FutureWarning)
    cases = json.loads(Path(cases_file).read_text())
    with session(RuntimeSection(device="cpu", timeout_s=60, threads=1)) as here:
        results = {name: run(case, here) for name, case in cases.items()}
        if here.is_main:
            torch.save(results, out)


if __name__ == "__main__":
    main(*sys.argv[1:])

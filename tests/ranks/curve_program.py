"""One rank: trains DLRM for many steps by each optimizer; saves the initial weights and each step's loss."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dlrm_dist.pipeline import pipeline_of
from dlrm_dist.runtime import Session, session
from dlrm_dist.sections import RuntimeSection
from dlrm_dist.verify import worker
from dlrm_dist.verify.gather import whole


def losses(job: worker.Job, steps: int, here: Session) -> dict[str, Any]:
    """Of the global batch: the mean over ranks."""
    problem, sharded = job.problem(), worker.build(job, here)
    initial = whole(sharded.model.state_dict())
    pipeline = pipeline_of(sharded, here.device)
    batches = (problem.batch(step, here.global_rank, here.world_size) for step in range(steps))
    found = torch.stack([pipeline.progress(batches)[0] for _ in range(steps)]) / here.world_size
    dist.all_reduce(found)
    return {"initial": initial, "losses": found}


def main(jobs_file: str, out: str, steps: str) -> None:
    jobs = [worker.Job.model_validate(each) for each in json.loads(Path(jobs_file).read_text())]
    with session(RuntimeSection(device="cpu", timeout_s=60, threads=1)) as here:
        found = {job.name: losses(job, int(steps), here) for job in jobs}
        if here.is_main:
            torch.save(found, out)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""One rank of the parity test: for each case trains a sharded model and saves its whole weights and optimizer state."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.distributed.types import ShardingPlan

from dlrm_dist.cpu_adagrad import fused_tables
from dlrm_dist.data.loader import SplitReader
from dlrm_dist.data.schema import read_info
from dlrm_dist.epochs import Epochs
from dlrm_dist.models.build import build_model
from dlrm_dist.models.shape import ModelShape, dataset_shape
from dlrm_dist.models.task import ClickTask
from dlrm_dist.optim import Optimizers
from dlrm_dist.planning.cluster import load_cluster
from dlrm_dist.planning.constraints import Rule
from dlrm_dist.planning.planner import Request, every_part_has_rows, make_plan
from dlrm_dist.planning.subject import make_subject
from dlrm_dist.planning.torchrec_plan import to_torchrec
from dlrm_dist.runtime import Session, session
from dlrm_dist.sections import ModelSection, OptimizerSection, RuntimeSection, TrainSection
from dlrm_dist.shard import shard
from dlrm_dist.verify.gather import whole


def mixed_plan(case: dict[str, Any], shape: ModelShape, here: Session) -> ShardingPlan:
    """A plan that gives the tables the types in turn; TorchRec's planner chooses the ranks."""
    kinds = [case["types"][number % len(case["types"])] for number in range(len(shape.features))]
    rules = tuple(
        Rule(
            pattern=f"t_{feature.name}",
            sharding_types=(kind if every_part_has_rows(feature.rows, here.world_size) else "table_wise",),
        )
        for feature, kind in zip(shape.features, kinds, strict=True)
    )
    subject = make_subject(ModelSection(**case["model"]), OptimizerSection(**case["optimizer"]), shape)
    hosts = here.world_size // here.local_world_size
    plan = make_plan(subject, load_cluster(f"cpu:{hosts}x{here.local_world_size}"), Request(64, (), rules))
    return to_torchrec(plan)


def run_case(case: dict[str, Any], here: Session) -> dict[str, Any]:
    folder = Path(case["data"])
    info = read_info(folder)
    reader = SplitReader(folder, info, "train", here.global_rank, here.world_size)
    epochs = Epochs.of(TrainSection(**case["train"]), reader, drop_last=False)
    section = ModelSection(**case["model"])
    shape = dataset_shape(info, section)
    features = [(feature.name, feature.rows) for feature in shape.features]
    task = ClickTask(build_model(section, shape.num_dense, features, 0, here.device))
    plan = mixed_plan(case, shape, here)
    rate = case["train"]["learning_rate"]
    optimizer = OptimizerSection(**case["optimizer"])
    sharded = shard(
        task,
        plan,
        here.device,
        Optimizers(optimizer, rate),
        seed=0,
    )
    initial = whole(sharded.model.state_dict())
    pipeline = TrainPipelineSparseDist(sharded.model, sharded.optimizer, here.device)
    batches = epochs.batches(reader)
    for factor in case["factors"]:
        sharded.scale_learning_rates(factor)
        pipeline.progress(batches)
    tables = fused_tables(sharded.model)
    fused = sharded.model.fused_optimizer.state_dict()["state"]
    return {
        "initial": initial,
        "final": whole(sharded.model.state_dict()),
        "state": whole({key: v for values in fused.values() for key, v in values.items() if key.endswith("momentum1")}),
        "loops": sorted({len(each.D_offsets) - 1 > len(each.feature_table_map) for each in tables}),
        "types": sorted({sharding.sharding_type for module in plan.plan.values() for sharding in module.values()}),
    }


def main(cases_file: str, out: str) -> None:
    cases = json.loads(Path(cases_file).read_text())
    with session(RuntimeSection(device="cpu", timeout_s=60)) as here:
        results = {name: run_case(case, here) for name, case in cases.items()}
        if here.is_main:
            torch.save(results, out)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Training from a config to a scored model: config -> session -> data -> model (meta) -> plan -> shard -> train."""

from functools import partial
from typing import Any

import torch

from dlrm_dist import optim, preflight, runfolder
from dlrm_dist.checkpoint import Checkpoints
from dlrm_dist.config import Config
from dlrm_dist.data import planted
from dlrm_dist.data.loader import SplitReader
from dlrm_dist.data.schema import DatasetInfo, read_info
from dlrm_dist.loop import Loop, Schedule
from dlrm_dist.models.build import build_model
from dlrm_dist.models.shape import ModelShape, dataset_shape
from dlrm_dist.models.task import ClickTask
from dlrm_dist.planning import plan_file
from dlrm_dist.planning.for_run import machine_at_hand, plan_of_run
from dlrm_dist.planning.inputs import request_of
from dlrm_dist.planning.plan_file import PlanFile
from dlrm_dist.planning.torchrec_plan import to_torchrec
from dlrm_dist.runfolder import RunFolder
from dlrm_dist.runtime import Session, is_restart, local_world_size, session, world_size
from dlrm_dist.shard import ShardedTask, shard


def main(config: Config) -> dict[str, Any]:
    """Train and score what `config` describes; returns the content of result.json. Collective.

    Raises:
        UserError: the config, the data and the machine do not fit together.
    """
    preflight.validate(config, world_size(), local_world_size())
    planted.ensure(config.data)
    info = read_info(config.data.path)
    preflight.validate_data(config, info, world_size())
    with session(config.runtime) as here:
        train, valid = _reader(config, info, "train", here), _reader(config, info, config.eval.split, here)
        schedule = Schedule.of(config.train, train, drop_last=config.data.last_batch == "drop")
        sharded, plan, folder = _build(config, info, here)
        run = folder if here.is_main else None
        checkpoints = _checkpoints(config, info, here, plan, folder)
        done = _resume(config, checkpoints, sharded, run)
        loop = Loop(here, sharded, schedule, run, config.train, config.eval, checkpoints)
        result = loop.run(train, valid, done)
        if valid.split in info.best_auc:
            result["best_reachable_auc"] = info.best_auc[valid.split]
        if run:
            result["run"] = str(run.path)
            run.write_json("result.json", result)
            print(runfolder.describe(result), flush=True)
        return result


def _reader(config: Config, info: DatasetInfo, split: str, here: Session) -> SplitReader:
    pin = here.device.type == "cuda"
    return SplitReader(config.data.path, info, split, here.global_rank, here.world_size, pin)


def _build(config: Config, info: DatasetInfo, here: Session) -> tuple[ShardedTask, PlanFile, RunFolder]:
    """The sharded model, its plan, and the run folder, made when there is a plan to write into it."""
    shape = dataset_shape(info, config.model)
    features = [(feature.name, feature.rows) for feature in shape.features]
    task = ClickTask(build_model(config.model, shape.num_dense, features, config.train.seed, here.device))
    plan, lines = here.from_main(lambda: _plan(config, shape, here))
    folder = here.from_main(lambda: RunFolder(config.run, config.checkpoint.resume == "auto"))
    if here.is_main:
        folder.start(config, plan, here)
        print("\n".join([*lines, *plan_file.summary(plan)]), flush=True)
    rate = config.train.learning_rate
    sharded = shard(
        task,
        to_torchrec(plan),
        here.device,
        partial(optim.sparse_optimizer, config.optimizer, rate),
        partial(optim.dense_optimizer, config.optimizer, rate),
        config.train.seed,
        config.sharding.comm_precision,
    )
    return sharded, plan, folder


def _checkpoints(config: Config, info: DatasetInfo, here: Session, plan: PlanFile, folder: RunFolder) -> Checkpoints:
    """Where the run's checkpoints lie, and what a run must share to go on from one."""
    split = info.splits["train"]
    same = {
        "train.batch_size": config.train.batch_size,
        "train.seed": config.train.seed,
        "data.last_batch": config.data.last_batch,
        "training rows": split.rows,
        "clicks among them": split.clicks,
        "optimizer.sparse": config.optimizer.sparse,
        "optimizer.dense": config.optimizer.dense,
    }
    announced = {
        "ranks": here.world_size,
        "plan": plan.digest,
        "threads": here.threads,
        "device": here.device.type,
        "torch": torch.__version__,
    }
    return Checkpoints(folder.path / "checkpoints", here, config.checkpoint, same, announced)


def _resume(config: Config, checkpoints: Checkpoints, sharded: ShardedTask, run: RunFolder | None) -> int:
    """Load the newest checkpoint, if that is asked for and there is one; returns the steps done."""
    found = checkpoints.load_newest(sharded) if config.checkpoint.resume == "auto" else None
    if found is None:
        return 0
    if run:
        run.forget_after(found.step)
        print("\n".join([*found.notes, f"continuing after step {found.step} ({found.path})"]), flush=True)
    return found.step


def _plan(config: Config, shape: ModelShape, here: Session) -> tuple[PlanFile, list[str]]:
    """The plan, and what is to be said about it; on global rank 0."""
    machine, lines = machine_at_hand(config.sharding, here.device, here.world_size, here.local_world_size)
    plan, more = plan_of_run(
        config.sharding,
        config.model,
        config.optimizer,
        shape,
        machine,
        request_of(config),
        restarted=is_restart(),
    )
    return plan, lines + more

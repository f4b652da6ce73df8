"""Training from a config to a scored model: config -> session -> data -> model (meta) -> plan -> shard -> train."""

from functools import partial
from typing import Any

from dlrm_dist import optim, preflight, runfolder
from dlrm_dist.config import Config
from dlrm_dist.data import planted
from dlrm_dist.data.loader import SplitReader
from dlrm_dist.data.schema import DatasetInfo, read_info
from dlrm_dist.loop import Loop, Schedule
from dlrm_dist.models.build import build_model
from dlrm_dist.models.task import ClickTask
from dlrm_dist.planning import plan_file
from dlrm_dist.planning.planner import make_plan
from dlrm_dist.runfolder import RunFolder
from dlrm_dist.runtime import Session, session, world_size
from dlrm_dist.shard import ShardedTask, shard


def main(config: Config) -> dict[str, Any]:
    """Train and score what `config` describes; returns the content of result.json. Collective.

    Raises:
        UserError: the config, the data and the machine do not fit together.
    """
    preflight.validate(config, world_size())
    planted.ensure(config.data)
    info = read_info(config.data.path)
    preflight.validate_data(config, info, world_size())
    with session(config.runtime) as here:
        train, valid = _reader(config, info, "train", here), _reader(config, info, config.eval.split, here)
        schedule = Schedule.of(config.train, train, drop_last=config.data.last_batch == "drop")
        run = RunFolder(config.run) if here.is_main else None
        sharded = _build(config, info, here, schedule, run)
        loop = Loop(here, sharded, schedule, run, config.train, config.eval)
        result = loop.run(train, valid)
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


def _build(config: Config, info: DatasetInfo, here: Session, schedule: Schedule, run: RunFolder | None) -> ShardedTask:
    """The sharded model; its plan is printed, and written into the run folder."""
    features = [(category.name, category.rows) for category in info.categories]
    task = ClickTask(build_model(config.model, len(info.dense), features, config.train.seed, here.device))
    per_rank_batch_size = schedule.orders[0].per_rank_batch_size(here.world_size)
    plan = make_plan(task, config.sharding, here.device, here.world_size, here.local_world_size, per_rank_batch_size)
    if run:
        run.start(config, plan, here)
        print("\n".join(plan_file.summary(plan)), flush=True)
    rate = config.train.learning_rate
    return shard(
        task,
        plan,
        here.device,
        partial(optim.sparse_optimizer, config.optimizer, rate),
        partial(optim.dense_optimizer, config.optimizer, rate),
        config.train.seed,
    )

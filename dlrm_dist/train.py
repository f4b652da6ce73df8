"""Training from a config to a scored model: config -> session -> data -> model (meta) -> plan -> shard -> train."""

import time
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

from dlrm_dist import optim, out_of_memory, place, preflight
from dlrm_dist.checkpoint import init_from
from dlrm_dist.checkpoint.keeper import Checkpoints, Continued, Origin
from dlrm_dist.config import Config
from dlrm_dist.data import planted
from dlrm_dist.data.loader import SplitReader
from dlrm_dist.data.schema import DatasetInfo, read_info
from dlrm_dist.epochs import Epochs
from dlrm_dist.evaluate import evaluate
from dlrm_dist.listeners import Listener, told
from dlrm_dist.loop import Loop
from dlrm_dist.mlperf_log import MlperfLog
from dlrm_dist.models.build import build_model
from dlrm_dist.models.shape import ModelShape, dataset_shape
from dlrm_dist.models.tables import tables_of
from dlrm_dist.models.task import ClickTask
from dlrm_dist.optim import Optimizers
from dlrm_dist.planning import plan_file
from dlrm_dist.planning.for_run import machine_at_hand, plan_of_run
from dlrm_dist.planning.inputs import request_of
from dlrm_dist.planning.plan_file import PlanFile
from dlrm_dist.planning.torchrec_plan import to_torchrec
from dlrm_dist.runfolder import Console, MetricsFile, RunFolder
from dlrm_dist.runtime import (
    Session,
    arithmetic,
    processor,
    session,
)
from dlrm_dist.sections import ModelSection
from dlrm_dist.shard import ShardedTask, shard
from dlrm_dist.step_split import StepSplit
from dlrm_dist.tensorboard import TensorBoard
from dlrm_dist.tries import RUN, is_restart, lacks_hosts, note, recall


def main(config: Config) -> dict[str, Any]:
    """Train and score what `config` describes; returns the content of result.json. Collective.

    Raises:
        UserError: the config, the data and the machine do not fit together.
    """
    began = time.time()
    config = _of_this_try(config)
    preflight.validate(config, place.world_size(), place.local_world_size())
    planted.ensure(config.data)
    info = read_info(config.data.path)
    preflight.validate_data(config, info, place.world_size())
    with ExitStack() as held, session(config.runtime) as here:
        train, valid = _reader(config, info, "train", here), _reader(config, info, config.eval.split, here)
        epochs = Epochs.of(config.train, train, drop_last=config.data.last_batch == "drop")
        shape = dataset_shape(info, config.model, config.data.expand_multi_hot)
        plan, lines = here.from_main(lambda: _plan(config, shape, here))
        folder = here.from_main(lambda: _folder(config, plan, here, held))
        clipping = optim.clipping(config.optimizer, [sharding.sharding_type for _, sharding in plan.placed()])
        notes = [*arithmetic(config.train.precision, here.device), *clipping, *_unread(config.model)]
        _say(here, *lines, *plan_file.summary(plan), *notes)
        with out_of_memory.named(here.global_rank, plan):
            sharded = build(config, shape, plan, here)
            torch.manual_seed(config.train.seed + here.global_rank)  # for whatever a model draws while it trains
            checkpoints = Checkpoints(
                folder.path / "checkpoints", here, config.checkpoint, _origin(config, info, here, plan)
            )
            continued = _restore(config, info, checkpoints, sharded, folder, here)
            train_section = config.train
            split = StepSplit(
                train_section.profile, train_section.log_every, here.device, folder.trace(here.global_rank)
            )
            scorer = partial(
                evaluate, batch_size=config.eval.batch_size, here=here, section=config.metrics, folder=folder.path
            )
            with told(_listeners(config, info, folder, began) if here.is_main else ()) as listener:
                loop = Loop(
                    here,
                    sharded,
                    epochs,
                    train_section,
                    config.schedule,
                    config.eval,
                    checkpoints,
                    split,
                    listener,
                    scorer,
                )
                result = loop.run(train, valid, continued)
                result |= {"run": str(folder.path), **_best_reachable(info, valid.split)}
                if here.is_main:
                    folder.write_json("result.json", result)
                listener.ends(result)
        return result


def _listeners(config: Config, info: DatasetInfo, folder: RunFolder, began: float) -> list[Listener]:
    """Who is told of the run's progress, on global rank 0."""
    always = [MetricsFile(folder), TensorBoard(folder.path), Console()]
    return always + ([MlperfLog(folder.path / "mlperf.log", config, info, began)] if config.train.mlperf_log else [])


def _best_reachable(info: DatasetInfo, split: str) -> dict[str, float]:
    return {"best_reachable_auc": info.best_auc[split]} if split in info.best_auc else {}


def _of_this_try(config: Config) -> Config:
    """When the launcher has started the ranks anew: the run that the first try began, to be continued."""
    if not is_restart():
        return config
    name = recall(RUN) or config.run.name
    return config.model_copy(
        update={
            "run": config.run.model_copy(update={"name": name}),
            "train": config.train.model_copy(update={"resume": "auto" if name else "no"}),
        }
    )


def _reader(config: Config, info: DatasetInfo, split: str, here: Session) -> SplitReader:
    pin = here.device.type == "cuda"
    return SplitReader(
        config.data.path, info, split, here.global_rank, here.world_size, pin, config.data.expand_multi_hot
    )


def _folder(config: Config, plan: PlanFile, here: Session, held: ExitStack) -> RunFolder:
    """The run's folder, kept from other runs until `held` ends, with what it takes to run it again."""
    folder = RunFolder(config.run, config.train.resume == "auto")
    held.enter_context(folder.held(config.runtime.timeout_s))
    note(RUN, folder.path.name)
    folder.start(config, plan, here)
    folder.keep_vocabularies(config.data.path)
    return folder


def build(config: Config, shape: ModelShape, plan: PlanFile, here: Session, initialise: bool = True) -> ShardedTask:
    """The config's model, sharded by `plan`, its tables initialised if asked to. Collective."""
    return shard(
        ClickTask(
            build_model(config.model, shape.num_dense, shape.named_rows, config.train.seed, here.device),
            here.device.type,
            config.train.precision == "bf16",
            config.train.micro_batches,
        ),
        to_torchrec(plan),
        here.device,
        Optimizers(config.optimizer, config.train.learning_rate),
        config.train.seed,
        config.sharding.comm_precision,
        initialise,
    )


def _origin(config: Config, info: DatasetInfo, here: Session, plan: PlanFile) -> Origin:
    """What is written into the checkpoints, and what a run must share to go on from one."""
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
    if config.model.managed_collisions:
        same["ranks, to which the ids of managed collisions are bound,"] = here.world_size
    sections = config.model_dump(mode="json", include={"model", "train", "optimizer", "schedule"})
    keys = {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}
    silent = {*same, "train.resume", "train.log_every", "model.init_from"}
    announced = {
        "ranks": here.world_size,
        "plan": plan.digest,
        "threads": here.threads,
        "device": here.device.type,
        "processor": processor(),
        "torch": torch.__version__,
        **{key: value for key, value in keys.items() if key not in silent},
    }
    return Origin(config, plan, same, announced)


def _restore(
    config: Config,
    info: DatasetInfo,
    checkpoints: Checkpoints,
    sharded: ShardedTask,
    folder: RunFolder,
    here: Session,
) -> Continued | None:
    """Load the newest checkpoint, if that is asked for and there is one; else the weights to start from, if any."""
    found = checkpoints.load_newest(sharded) if config.train.resume == "auto" else None
    if found:
        here.from_main(lambda: folder.forget_after(found.step))
        _say(here, *found.notes, f"continuing after step {found.step} ({found.path})")
    elif config.model.init_from:
        shape = dataset_shape(info, config.model, config.data.expand_multi_hot)
        tables = tables_of(config.model, shape.named_rows)
        _say(here, *init_from.load_weights(sharded, tables, config.model.init_from, config.data.path))
    return found


def _unread(model: ModelSection) -> list[str]:
    return [f"not read by {model.name}: {', '.join(model.unread)}"] if model.unread else []


def _say(here: Session, *lines: str) -> None:
    if here.is_main:
        print("\n".join(lines), flush=True)


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
        incomplete=lacks_hosts(),
    )
    return plan, lines + more

"""What can be refused before any rank starts: the config, the data, and whether they fit the number of ranks."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from dlrm_dist import config as config_module
from dlrm_dist import learning_rate, mlperf_log, optim, place, runfolder, runtime, tries
from dlrm_dist.config import Config
from dlrm_dist.data import footers, planted
from dlrm_dist.data.order import EpochOrder
from dlrm_dist.data.schema import DatasetInfo, check_category, read_info
from dlrm_dist.errors import UserError
from dlrm_dist.models import micro_batches
from dlrm_dist.models.shape import dataset_shape
from dlrm_dist.planning import check as plan_check
from dlrm_dist.planning import cluster, constraints, plan_file
from dlrm_dist.planning.plan_file import Table
from dlrm_dist.planning.tables import model_tables
from dlrm_dist.sections import ModelSection, ShardingSection, TrainSection


def check(arguments: Sequence[str], world_size: int, local_world_size: int) -> int:
    """Check a training command line for so many ranks, on all hosts and on each, without starting anything.

    Returns:
        The seconds that the run has to save when it is asked to stop.

    Raises:
        UserError: the run would be refused.
    """
    if {"-h", "--help"} & set(arguments):
        return config_module.Config().runtime.grace_s
    config = config_module.load(arguments)
    validate(config, world_size, local_world_size)
    if not planted.is_wanted(config.data):
        validate_data(config, read_info(config.data.path), world_size)
    return config.runtime.grace_s


def validate(config: Config, world_size: int, local_world_size: int) -> None:
    """Check what needs no data, for ranks on this machine; of planted data, what is known before they are made.

    Raises:
        UserError: as `validate_config`, `validate_folders` and `validate_data` say; this machine has too few GPUs.
    """
    device = runtime.choose_device(config.runtime.device, 0, local_world_size)
    validate_config(config, world_size, device.type)
    if place.global_rank() == 0:
        validate_folders(config)
    if planted.is_wanted(config.data):
        info = planted.to_come(config.data)
        dataset_shape(info, config.model, config.data.expand_multi_hot)
        _check_rows(config, info, world_size)


def validate_config(config: Config, world_size: int, device_type: str) -> None:
    """Check what needs neither data nor the machine that will train.

    Raises:
        UserError: a rank would get no row of a batch; the plan is for other ranks; the optimizer is not for the device.
    """
    batch_sizes = {"train.batch_size": config.train.batch_size, "eval.batch_size": config.eval.batch_size}
    for key, batch_size in batch_sizes.items():
        if batch_size < world_size:
            raise UserError(
                f"{key} is {batch_size}, the global batch of {world_size} ranks: each needs a row at least; "
                f"use {world_size} or more, or fewer ranks"
            )
    _check_micro_batches(config.train, config.model, world_size)
    if config.train.max_steps:
        learning_rate.check_length(config.schedule, config.train.max_steps)
    mlperf_log.check(config)
    types = _validate_sharding(config.sharding, batch_sizes, world_size)
    optim.check_tables(config.optimizer, device_type, types, config.model.table_precision)
    if config.train.precision == "tf32" and device_type == "cpu":
        raise UserError(
            "train.precision is tf32, which GPUs alone have, and this run is on cpu; allowed here: fp32, bf16; use "
            "fp32, or bf16 where the processor has instructions for it"
        )


def validate_fewer(config: Config, world_sizes: Iterable[int], device_type: str) -> None:
    """Check that the run can go on with fewer ranks, when hosts are lost.

    Raises:
        UserError: it would be refused then.
    """
    if config.model.managed_collisions:
        raise UserError(
            "model.managed_collisions binds ids to the number of ranks, which changes when hosts come and go; give -j "
            "one number of hosts"
        )
    sharding = config.sharding
    if sharding.plan:  # one for fewer ranks is made then, under the same constraints
        types = plan_file.read(sharding.plan).inputs.sharding_types
        sharding = sharding.model_copy(update={"plan": None, "types": types})
    for world_size in world_sizes:
        try:
            validate_config(config.model_copy(update={"sharding": sharding}), world_size, device_type)
        except UserError as error:
            raise UserError(f"when hosts are lost: {error}") from None


def validate_folders(config: Config) -> None:
    """Check that the run's folder, and the planted dataset if it is wanted, can be made, and what it starts from.

    Raises:
        UserError: the run's name is taken; one may not write there; there are no weights at `model.init_from`.
    """
    runfolder.check(config.run, config.train.resume == "auto")
    if config.model.init_from and config.train.resume == "no":
        from dlrm_dist.checkpoint.source import open_source  # PyTorch's

        open_source(config.model.init_from)
    _check_can_make(config.run.folder, "run.folder")
    if planted.is_wanted(config.data):
        _check_can_make(config.data.path, "data.path")


def _check_micro_batches(section: TrainSection, model: ModelSection, world_size: int) -> None:
    rows = section.batch_size // world_size
    if model.has_batch_norm and section.micro_batches > 1:
        raise UserError(micro_batches.with_batch_norm(section.micro_batches))
    if rows < section.micro_batches:
        raise UserError(
            f"train.micro_batches is {section.micro_batches}, and of train.batch_size {section.batch_size} a rank of "
            f"{world_size} gets {rows}: each part needs a row at least; use fewer parts or a larger batch"
        )


def _steps(config: Config, info: DatasetInfo) -> int:
    """Of the whole run, unless validation ends it early."""
    rows, drop = info.splits["train"].rows, config.data.last_batch == "drop"
    order = EpochOrder(rows, info.lanes, info.group_rows, config.train.batch_size, None, drop_last=drop)
    steps = order.num_steps * config.train.epochs
    return min(steps, config.train.max_steps or steps)


def _validate_sharding(section: ShardingSection, batch_sizes: dict[str, int], world_size: int) -> set[str]:
    """Check the section; gives the sharding types that tables may have."""
    if section.cluster:
        cluster.load_cluster(section.cluster)
    rules = constraints.load_rules(section.constraints) if section.constraints else ()
    rows = {key: -(-size // world_size) for key, size in batch_sizes.items()}
    if not section.plan:
        allowed = [rule.sharding_types for rule in rules] or [section.types]
        for types in allowed:
            constraints.refuse_precision(section.comm_precision, types, rows)
        return {kind for types in allowed for kind in types}
    plan = plan_file.read(section.plan)
    placed = {sharding.sharding_type for _, sharding in plan.placed()}
    constraints.refuse_precision(section.comm_precision, sorted(placed), rows)
    is_incomplete = tries.lacks_hosts() and world_size < plan.world_size  # a host that is late begins a new try
    if plan.world_size != world_size and not (tries.is_restart() or is_incomplete):
        raise UserError(
            f"{section.plan}: is for {plan.world_size} ranks ({plan.inputs.cluster.size}), this run has "
            f"{world_size}; make one: dlrm-dist plan make --config CONFIG --cluster "
            f"{plan.inputs.cluster.name}:1x{world_size} --out NAME.plan.json"
        )
    return placed


def _check_can_make(path: Path, key: str) -> None:
    """Refuse a folder that is none, or that cannot be made where it is to be."""
    nearest = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{key} {path}: cannot be made: {nearest} is not a folder one may write to; choose another")


def _check_managed(config: Config, tables: Sequence[Table], world_size: int) -> None:
    """Refuse what a plan for tables with managed collisions cannot be."""
    file = config.sharding.constraints
    rules = constraints.load_rules(file) if file else None
    for table in tables:
        if table.managed:
            constraints.refuse_managed(table.name, table.rows, world_size, config.sharding.types, rules)


def validate_data(config: Config, info: DatasetInfo, world_size: int) -> None:
    """Check that a dataset serves the run.

    Raises:
        UserError: a split is missing or has too few rows; more ranks than lanes; tables or a plan that do not fit.
    """
    path = config.data.path
    shape = dataset_shape(info, config.model, config.data.expand_multi_hot)
    tables = model_tables(config.model, config.optimizer, shape)
    if not config.sharding.plan:
        _check_managed(config, tables, world_size)
    else:
        plan = plan_file.read(config.sharding.plan)
        problems = plan_check.model_problems(plan, tables, config.optimizer.sparse)
        if problems:
            raise UserError(
                f"{config.sharding.plan}: {problems[0]} ({len(problems)} in all); make a plan for this model: "
                f"dlrm-dist plan make --config CONFIG --cluster {plan.inputs.cluster.name}:{plan.inputs.cluster.size} "
                "--out NAME.plan.json"
            )
    _check_rows(config, info, world_size)
    for name in ("train", config.eval.split):
        footers.check_split(path, info, name)


def _check_rows(config: Config, info: DatasetInfo, world_size: int) -> None:
    """Refuse splits that are not there, too few rows, and a schedule that is longer than they make the run."""
    path = config.data.path
    check_category("metrics.group_by", config.metrics.group_by, info)
    for name in ("train", config.eval.split):
        if name not in info.splits:
            raise UserError(f"{path}: has no split {name!r}; it has {', '.join(info.splits)} (eval.split chooses one)")
        if info.splits[name].rows < world_size:
            raise UserError(
                f"{path}: split {name} has {info.splits[name].rows} rows, too few for one batch on each of "
                f"{world_size} ranks; use more data or fewer ranks"
            )
    learning_rate.check_length(config.schedule, _steps(config, info))
    if world_size > info.lanes:
        raise UserError(
            f"{path}: is written in {info.lanes} lanes and serves at most as many ranks, not {world_size}; "
            "start fewer ranks, or prepare it with more lanes"
        )
    if config.data.last_batch == "drop" and info.splits["train"].rows < config.train.batch_size:
        raise UserError(
            f"{path}: split train has {info.splits['train'].rows} rows, less than one batch of "
            f'{config.train.batch_size}, and data.last_batch is "drop"; use "pad", or a smaller train.batch_size'
        )

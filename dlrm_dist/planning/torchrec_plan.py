"""TorchRec's `ShardingPlan` to the plan file's form and back: every field of every `ParameterSharding`, both ways."""

import dataclasses
import types
import typing
from enum import Enum
from typing import Any

from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharding_spec import EnumerableShardingSpec
from torchrec.distributed.types import (
    BoundsCheckMode,
    CacheParams,
    EmbeddingModuleShardingPlan,
    KeyValueParams,
    ParameterSharding,
    ShardingPlan,
)
from torchrec.modules.embedding_configs import DataType

from dlrm_dist.planning.plan_file import PlanFile, Shard, TableSharding


def from_torchrec(plan: ShardingPlan) -> dict[str, dict[str, TableSharding]]:
    """The `modules` of a plan file."""
    return {path: {name: _table(sharding) for name, sharding in module.items()} for path, module in plan.plan.items()}


def to_torchrec(plan: PlanFile) -> ShardingPlan:
    """The plan as TorchRec takes it."""
    return ShardingPlan(
        {
            path: EmbeddingModuleShardingPlan({name: _sharding(table) for name, table in module.items()})
            for path, module in plan.modules.items()
        }
    )


def _table(sharding: ParameterSharding) -> TableSharding:
    values = {field.name: _plain(getattr(sharding, field.name)) for field in dataclasses.fields(sharding)}
    spec = sharding.sharding_spec
    del values["sharding_spec"]
    shards = None
    if spec is not None:
        shards = tuple(
            Shard(offsets=tuple(s.shard_offsets), sizes=tuple(s.shard_sizes), placement=str(s.placement))
            for s in spec.shards
        )
    return TableSharding(shards=shards, **values)


def _sharding(table: TableSharding) -> ParameterSharding:
    spec = None
    if table.shards is not None:
        spec = EnumerableShardingSpec(
            [
                ShardMetadata(shard_offsets=list(s.offsets), shard_sizes=list(s.sizes), placement=s.placement)
                for s in table.shards
            ]
        )
    return ParameterSharding(
        sharding_type=table.sharding_type,
        compute_kernel=table.compute_kernel,
        ranks=None if table.ranks is None else list(table.ranks),
        sharding_spec=spec,
        cache_params=_build(CacheParams, table.cache_params),
        enforce_hbm=table.enforce_hbm,
        stochastic_rounding=table.stochastic_rounding,
        bounds_check_mode=_build(BoundsCheckMode, table.bounds_check_mode),
        output_dtype=_build(DataType, table.output_dtype),
        key_value_params=_build(KeyValueParams, table.key_value_params),
    )


def _plain(value: Any) -> Any:
    """Enums by value, dataclasses by fields, tuples as lists; other objects have no plain form."""
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


def _build(kind: Any, value: Any) -> Any:
    """The inverse of `_plain`, by the type that a field is declared with."""
    if value is None:
        return None
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return _build(next(each for each in typing.get_args(kind) if each is not type(None)), value)
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)
        kinds = inner[:1] * len(value) if inner[1:] == (...,) else inner
        return tuple(_build(each, part) for each, part in zip(kinds, value, strict=True))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{name: _build(hints[name], part) for name, part in value.items()})
    return value

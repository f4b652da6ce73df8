"""Sharding plans as JSON: every field of every `ParameterSharding`, both ways."""

import dataclasses
import json
from enum import Enum
from pathlib import Path
from typing import Any

from torchrec.distributed.types import ParameterSharding, ShardingPlan

VERSION = 1


def to_json(plan: ShardingPlan) -> dict[str, Any]:
    """The plan as plain JSON values."""
    return {
        "version": VERSION,
        "modules": {
            path: {name: _sharding_to_json(sharding) for name, sharding in module.items()}
            for path, module in plan.plan.items()
        },
    }


def write(plan: ShardingPlan, path: Path) -> None:
    """Write the plan as a JSON file."""
    path.write_text(json.dumps(to_json(plan), indent=1) + "\n")


def summary(plan: ShardingPlan) -> list[str]:
    """A line a table: type, kernel, ranks, shape of its shards."""
    lines = [f"{'table':<12} {'sharding':<18} {'kernel':<8} ranks"]
    for module in plan.plan.values():
        for name, sharding in module.items():
            ranks = ",".join(map(str, sharding.ranks)) if sharding.ranks else "all"
            lines.append(f"{name:<12} {sharding.sharding_type:<18} {sharding.compute_kernel:<8} {ranks}")
    return lines


def _sharding_to_json(sharding: ParameterSharding) -> dict[str, Any]:
    values = {field.name: getattr(sharding, field.name) for field in dataclasses.fields(sharding)}
    spec = values.pop("sharding_spec")
    values["shards"] = (
        None
        if spec is None
        else [
            {"offsets": shard.shard_offsets, "sizes": shard.shard_sizes, "placement": str(shard.placement)}
            for shard in spec.shards
        ]
    )
    return {key: _plain(value) for key, value in values.items()}


def _plain(value: Any) -> Any:
    """Enums by value, dataclasses by fields."""
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value

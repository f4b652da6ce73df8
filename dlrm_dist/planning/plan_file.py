"""A sharding plan as a file: what lies where, what it was made from, and what it is expected to cost.

Nothing here needs PyTorch, so a plan is read, explained, compared and checked at once and anywhere; `torchrec_plan.py`
turns it into TorchRec's objects and back.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dlrm_dist.errors import UserError, first_problem
from dlrm_dist.planning.cluster import Cluster
from dlrm_dist.planning.constraints import Rule

VERSION = 2
"""1 had neither inputs nor estimates."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Shard(_Strict):
    """A block of a table: (row, column) where it begins, (rows, columns), and its device, such as `rank:0/cuda:0`."""

    offsets: tuple[int, int]
    sizes: tuple[int, int]
    placement: str


class TableSharding(_Strict):
    """Every field of TorchRec's `ParameterSharding`; `shards` is its sharding spec."""

    sharding_type: str
    compute_kernel: str
    ranks: tuple[int, ...] | None
    shards: tuple[Shard, ...] | None
    cache_params: dict[str, Any] | None = None
    enforce_hbm: bool | None = None
    stochastic_rounding: bool | None = None
    bounds_check_mode: int | None = None
    output_dtype: str | None = None
    key_value_params: dict[str, Any] | None = None


class Table(_Strict):
    """A table of the model."""

    name: str
    rows: int
    dim: int
    features: tuple[str, ...]
    ids_per_sample: tuple[float, ...]
    data_type: str
    optimizer_bytes_per_row: float
    id_map_bytes_per_row: float = Field(default=0.0, exclude_if=lambda size: not size)
    """Of a table with managed collisions; 0: its ids are its rows."""

    @property
    def managed(self) -> bool:
        """Whether it has managed collisions."""
        return self.id_map_bytes_per_row > 0

    @property
    def bytes_per_row(self) -> float:
        """Of the weights, of the optimizer's state and of the ids' map."""
        return self.dim * BYTES[self.data_type] + self.optimizer_bytes_per_row + self.id_map_bytes_per_row


BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


class Dense(_Strict):
    """What of the model is replicated: its parameters' bytes, its floating-point operations, a sample's input."""

    name: str
    parameter_bytes: int
    forward_flop_per_sample: float
    backward_flop_per_sample: float
    input_bytes_per_sample: float
    collectives: int = Field(default=0, exclude_if=lambda value: value == 0)
    """Sums over ranks within a step's layers, of a few kilobytes each; plans of before there were any have none."""


class Inputs(_Strict):
    """All that a plan was made from."""

    tables: tuple[Table, ...]
    dense: Dense
    optimizer: str
    batch_size: int
    """The global batch."""
    comm_precision: str
    """Of the exchange of embeddings and their gradients."""
    dense_precision: str = "fp32"
    """Of the dense layers' arithmetic, for the prediction."""
    sharding_types: tuple[str, ...]
    constraints: tuple[Rule, ...] | None
    constraints_file: str | None
    cluster: Cluster
    versions: dict[str, str]

    def digest(self) -> str:
        """A hash of everything but the versions."""
        text = json.dumps(self.model_dump(mode="json", exclude={"versions"}), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class ShardEstimate(_Strict):
    """What the planner expects of one shard: bytes of its rank's memory, milliseconds of a step."""

    rank: int
    hbm: int
    ddr: int
    id_exchange: float
    lookup: float
    forward_exchange: float
    backward_exchange: float
    update: float

    @property
    def milliseconds(self) -> float:
        """All parts one after another."""
        return self.id_exchange + self.lookup + self.forward_exchange + self.backward_exchange + self.update


class Alternative(_Strict):
    """Another way for one table, all others staying as they are.

    `slowest_rank` is the slowest rank's milliseconds with it, None if it does not fit; `bytes` is what it takes on all
    ranks together.
    """

    sharding_type: str
    compute_kernel: str
    slowest_rank: float | None
    bytes: int


class TableEstimate(_Strict):
    """What the planner expects of one table."""

    shards: tuple[ShardEstimate, ...]
    alternatives: tuple[Alternative, ...]


class PlanFile(_Strict):
    """A plan with its inputs and estimates; `modules` maps module path and table name to the table's sharding."""

    version: int = VERSION
    inputs: Inputs
    digest: str
    modules: dict[str, dict[str, TableSharding]]
    estimates: dict[str, TableEstimate]

    @property
    def world_size(self) -> int:
        """Ranks that the plan is for."""
        return self.inputs.cluster.world_size

    def placed(self) -> Iterator[tuple[str, TableSharding]]:
        """Each table and its sharding."""
        for module in self.modules.values():
            yield from module.items()

    def write(self, path: Path) -> None:
        """Write the file whole or not at all; a line a table, so that plans can be compared line by line.

        Raises:
            UserError: it cannot be written.
        """
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            temporary.write_text(_block("{", _lines(self.model_dump(mode="json")), "}") + "\n")
            temporary.replace(path)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written: {error.strerror}; name a file in a folder that exists"
            ) from None


class OtherVersionError(UserError):
    """A plan file of another version of the format."""


def read(path: Path) -> PlanFile:
    """Read a plan file. Whether the plan is sound is another matter: `check.problems`.

    Raises:
        UserError: it cannot be read, or is no plan file of this version.
    """
    try:
        values = json.loads(path.read_text())
        version = values.get("version")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; make a plan: dlrm-dist plan make") from None
    except (ValueError, AttributeError):
        raise UserError(f"{path}: is not a plan file (JSON as `dlrm-dist plan make` writes it)") from None
    if version != VERSION:
        raise OtherVersionError(
            f"{path}: is a plan file of version {version}, this program reads version {VERSION}; make it anew: "
            "dlrm-dist plan make"
        )
    try:
        return PlanFile.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{path}: {first_problem(error)}; make it anew: dlrm-dist plan make") from None


def summary(plan: PlanFile) -> list[str]:
    """A line a table: type, kernel, ranks."""
    lines = [f"{'table':<12} {'sharding':<18} {'kernel':<18} ranks"]
    for name, sharding in plan.placed():
        lines.append(
            f"{name:<12} {sharding.sharding_type:<18} {sharding.compute_kernel:<18} {rank_text(sharding.ranks)}"
        )
    return lines


def rank_text(ranks: tuple[int, ...] | None) -> str:
    """Ranks in short: `0-7`, `3`, `0,2,4`; `all` when none are given."""
    if not ranks:
        return "all"
    unique = sorted(set(ranks))
    if len(unique) > 2 and unique[-1] - unique[0] == len(unique) - 1:
        return f"{unique[0]}-{unique[-1]}"
    shown = ",".join(map(str, unique[:8]))
    return shown + (f",… ({len(unique)})" if len(unique) > 8 else "")


def _lines(values: dict[str, Any]) -> Iterator[str]:
    """The file's top-level keys: what is a mapping or a list there has a line for each of its items."""
    for key, value in values.items():
        if key == "inputs":
            text = _block("{", _lines(value), "}")
        elif key == "modules":
            text = _block("{", (f"{json.dumps(path)}: {_block('{', _items(m), '}')}" for path, m in value.items()), "}")
        elif key == "estimates":
            text = _block("{", _items(value), "}")
        elif key == "tables":
            text = _block("[", map(json.dumps, value), "]")
        else:
            text = json.dumps(value)
        yield f"{json.dumps(key)}: {text}"


def _items(mapping: dict[str, Any]) -> Iterator[str]:
    return (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in mapping.items())


def _block(opening: str, lines: Iterable[str], closing: str) -> str:
    return "\n".join([opening, ",\n".join(lines), closing])

"""Constraints by table: which sharding types, kernels and ranks a plan may use. The first matching pattern wins.

[[table]]
pattern = "t_C1*"                       # as in file names; matches the table's name
sharding_types = ["row_wise"]
compute_kernels = ["fused"]             # optional
pooling_factor = 3.0                    # optional: ids a sample; else the config's
min_ranks = 4                           # optional: spread over at least that many
ranks = [0, 1]                          # optional: exactly these, for table_wise and column_wise
"""

import tomllib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dlrm_dist.errors import UserError, first_problem
from dlrm_dist.planning import exchange
from dlrm_dist.planning.cluster import PLANS
from dlrm_dist.sections import ShardingName

SHARDING_TYPES: tuple[str, ...] = get_args(ShardingName)
PINNABLE = ("table_wise", "column_wise")
"""Types whose shards may lie on any rank; the others lie on all ranks, or on all of a host."""


_WITHOUT_INT8 = ("row_wise", "table_row_wise", "grid_shard")
"""Types whose exchange is a reduce-scatter, which sums: TorchRec fails there with int8."""


REPLICATED_FP16 = "replicated tables in fp16 would have their moments in fp16 too, where small squares vanish"
INT8_ROWS = 8
"""FBGEMM's int8 codec works on blocks of 32 numbers: 8 rows of the narrowest shard, 4 columns, always fill them."""


def refuse_precision(comm_precision: str, sharding_types: Iterable[str], rows: dict[str, int] | None = None) -> None:
    """Refuse a precision of the exchange that does not work with a type, or with a rank's number of rows.

    Args:
        comm_precision: of the exchange.
        sharding_types: those of a plan, or those that are allowed.
        rows: rows of a rank in a batch, by the config key that they come from.

    Raises:
        UserError: it does not work.
    """
    precision, only_between_hosts = exchange.split(comm_precision)
    for key, count in (rows or {}).items():
        if precision == "int8" and count % INT8_ROWS:
            raise UserError(
                f"sharding.comm_precision is {comm_precision}, which needs a multiple of {INT8_ROWS} rows on a rank; "
                f"{key} gives {count}; use a batch of a multiple of {INT8_ROWS} x ranks"
            )
    bad = [kind for kind in sharding_types if kind in _WITHOUT_INT8]
    if precision == "int8" and bad and not only_between_hosts:
        raise UserError(
            f"sharding.comm_precision is int8, which does not work with {bad[0]} (its exchange sums on the way); use "
            "fp16 or bf16, or allow only table_wise, column_wise, table_column_wise and data_parallel"
        )


class Rule(BaseModel):
    """What the tables that match a pattern may be."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    pattern: str
    sharding_types: tuple[ShardingName, ...] = Field(min_length=1)
    compute_kernels: tuple[str, ...] | None = None
    pooling_factor: Annotated[float, Field(gt=0)] | None = None
    min_ranks: Annotated[int, Field(gt=0)] | None = None
    ranks: tuple[Annotated[int, Field(ge=0)], ...] | None = None

    @model_validator(mode="after")
    def _fixed_ranks_are_possible(self) -> Self:
        if self.ranks is not None and not set(self.sharding_types) <= set(PINNABLE):
            raise ValueError(f"{self.pattern}: ranks can be fixed for {' and '.join(PINNABLE)} only")
        if self.ranks is not None and (not self.ranks or len(set(self.ranks)) != len(self.ranks)):
            raise ValueError(f"{self.pattern}: ranks must name one rank or more, each once")
        if self.ranks is not None and "table_wise" in self.sharding_types and len(self.ranks) != 1:
            raise ValueError(f"{self.pattern}: a table_wise table lies on one rank, not on {len(self.ranks)}")
        return self


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")
    table: list[Rule] = Field(min_length=1)


def load_rules(text: str | Path) -> tuple[Rule, ...]:
    """The rules of a constraints file, given by its path or by its name in sharding_plans/constraints/.

    Raises:
        UserError: it cannot be read, or says something impossible.
    """
    path = Path(text)
    if path.suffix != ".toml":
        path = PLANS / "constraints" / f"{text}.toml"
    try:
        return tuple(_File(**tomllib.loads(path.read_text())).table)
    except OSError as error:
        known = ", ".join(sorted(each.stem for each in (PLANS / "constraints").glob("*.toml")))
        raise UserError(f"{path}: cannot be read: {error.strerror}; known constraints are {known}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, TypeError) as error:
        raise UserError(f"{path}: is not valid TOML: {error}") from None
    except ValidationError as error:
        raise UserError(f"{path}: {first_problem(error)}; see sharding_plans/constraints/") from None


def rule_of(table: str, rules: tuple[Rule, ...]) -> Rule:
    """The first rule whose pattern matches a table's name.

    Raises:
        UserError: none does.
    """
    for rule in rules:
        if fnmatchcase(table, rule.pattern):
            return rule
    raise UserError(
        f'constraints: no pattern matches table {table}; add a [[table]] for it, or a last one with pattern = "*"'
    )


def refuse_managed(
    table: str, rows: int, world_size: int, sharding_types: Sequence[str], rules: tuple[Rule, ...] | None
) -> None:
    """Refuse what a table with managed collisions cannot be, or what cannot be beside it.

    It is row-wise, and of each rank's part the last row is for ids that have none. Its weights lie in the device's own
    memory, where rows are overwritten; where other tables lie behind a cache, ids are fetched ahead, before they are
    rows.

    Args:
        table: its name.
        rows: of the table.
        world_size: ranks.
        sharding_types: those that tables may have where there are no rules.
        rules: the constraints by table, if there are.

    Raises:
        UserError: it cannot be so.
    """
    rule = rule_of(table, rules) if rules else None
    types = rule.sharding_types if rule else sharding_types
    if "row_wise" not in types:
        where = f"constraints (pattern {rule.pattern!r})" if rule else "sharding.types"
        raise UserError(
            f"{where}: table {table} has managed collisions (model.managed_collisions), which are row_wise only, not "
            f"{' or '.join(types)}; allow row_wise"
        )
    other = next((each for each in rules or () if set(each.compute_kernels or ()) - {"fused"}), None)
    if other:
        raise UserError(
            f"constraints: compute_kernels {list(other.compute_kernels or ())} (pattern {other.pattern!r}) do not go "
            f"with the managed collisions of table {table}; allow fused only"
        )
    if rows - (world_size - 1) * -(-rows // world_size) < 2:
        raise UserError(
            f"table {table} has managed collisions and {rows} rows: cut for {world_size} ranks, the last has less than "
            f"two; use a multiple of {world_size} (model.managed_rows, or model.num_embeddings)"
        )


def check_rules_are_used(tables: list[str], rules: tuple[Rule, ...]) -> None:
    """Refuse a pattern that is no table's first match: it is misspelt, or hidden behind an earlier one.

    Raises:
        UserError: there is one.
    """
    used = {id(rule_of(table, rules)) for table in tables}
    for rule in rules:
        if id(rule) not in used and rule.pattern != "*":
            raise UserError(
                f"constraints: pattern {rule.pattern!r} is no table's first match; the tables are {tables[0]} to "
                f"{tables[-1]}"
            )

"""What is compared: sharding types, optimizers, precisions, numbers of ranks; what cannot be equal, or cannot run."""

from collections.abc import Iterable
from dataclasses import dataclass

from dlrm_dist.errors import UserError
from dlrm_dist.planning import exchange
from dlrm_dist.planning.constraints import INT8_ROWS, REPLICATED_FP16, SHARDING_TYPES, refuse_precision

BATCH_SIZE = 127
"""Odd, so that 2 and 4 ranks get fillers; their 64 and 32 rows are what int8 wants."""
MIXED = "mixed"
"""A case whose tables take the types in turn."""
FUSED_ON_CPU = ("sgd", "rowwise_adagrad", "adagrad")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
_BY_COLUMN = ("column_wise", "table_column_wise", "grid_shard")


@dataclass(frozen=True)
class Layout:
    """Ranks, and the simulated hosts that they are spread over."""

    hosts: int
    ranks_per_host: int

    @property
    def world_size(self) -> int:
        """All ranks."""
        return self.hosts * self.ranks_per_host

    def __str__(self) -> str:
        return f"{self.hosts}x{self.ranks_per_host}"


@dataclass(frozen=True)
class Case:
    """One comparison."""

    layout: Layout
    sharding_type: str
    optimizer: str
    table_precision: str
    comm_precision: str

    @property
    def name(self) -> str:
        """Unique among the cases of a layout."""
        return f"{self.sharding_type}/{self.optimizer}/{self.table_precision}/{self.comm_precision}"

    def types(self, tables: int) -> list[str]:
        """The sharding type of each table."""
        if self.sharding_type != MIXED:
            return [self.sharding_type] * tables
        kinds = [kind for kind in SHARDING_TYPES if not self._is_unequal(kind) and not _refusal(self, [kind])]
        return [kinds[number % len(kinds)] for number in range(tables)]

    def cannot_be_equal(self) -> str | None:
        """Why the sharded optimizer is another one, if it is."""
        if self._is_unequal(self.sharding_type):
            return "row-wise Adagrad keeps a moment for each part of a row cut by columns"
        return None

    def refused(self) -> str | None:
        """Why the case does not run, if it does not."""
        return _refusal(self, [] if self.sharding_type == MIXED else [self.sharding_type])

    @property
    def is_exact(self) -> bool:
        """Whether every number is fp32: then the largest difference counts, else the mean one."""
        return self.table_precision == self.exchanged == "fp32"

    @property
    def exchanged(self) -> str:
        """The precision of the exchange on this number of hosts."""
        precision, only_between_hosts = exchange.split(self.comm_precision)
        return "fp32" if only_between_hosts and self.layout.hosts == 1 else precision

    @property
    def tolerance(self) -> float:
        """What is allowed.

        In fp32: 1e-5 for the largest difference of any weight or moment, after all steps. Where numbers are rounded on
        the way (fp16 to 2^-11, bf16 to 2^-8 of their size, int8 to a 127th of a block's range) single weights say
        nothing: a change of an embedding by half a percent puts one row in a hundred on the other side of a ReLU, which
        changes its gradient by half, and training goes on from there: after 20 steps weights are off by .1 to .2 of
        their way, whether a table is sharded or only rounded, as much as a learning rate does that is off by a tenth.
        So the first step counts, and the median of a table's rows: found were up to .016, and .11 with that learning
        rate.
        """
        if self.is_exact:
            return 1e-5
        return 0.05

    def _is_unequal(self, kind: str) -> bool:
        return self.optimizer == "rowwise_adagrad" and kind in _BY_COLUMN


def make_cases(
    layouts: Iterable[Layout], optimizers: Iterable[str], table_precisions: Iterable[str], comm: Iterable[str]
) -> list[Case]:
    """All combinations, sharding types innermost."""
    return [
        Case(layout, kind, optimizer, table, exchange)
        for layout in layouts
        for optimizer in optimizers
        for table in table_precisions
        for exchange in comm
        for kind in (*SHARDING_TYPES, MIXED)
    ]


def _refusal(case: Case, kinds: list[str]) -> str | None:
    if case.comm_precision in ("fp16", "bf16", "int8") and kinds == ["data_parallel"]:
        return "data-parallel tables exchange no embeddings"
    if case.table_precision == "fp16" and kinds == ["data_parallel"] and case.optimizer != "sgd":
        return REPLICATED_FP16
    try:
        refuse_precision(case.comm_precision, kinds)
    except UserError:
        return f"{case.comm_precision} does not work with a reduce-scatter"
    rows = -(-BATCH_SIZE // case.layout.world_size)
    if case.exchanged == "int8" and rows % INT8_ROWS:
        return f"int8 needs a multiple of {INT8_ROWS} rows on a rank, here are {rows}"
    return None

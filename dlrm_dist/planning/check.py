"""Whether a plan is sound, and still the one for a config: each problem is a line."""

from collections.abc import Iterator, Sequence

from dlrm_dist.planning.cluster import GIB, Cluster
from dlrm_dist.planning.constraints import SHARDING_TYPES
from dlrm_dist.planning.plan_file import Inputs, PlanFile, Shard, Table, TableSharding


def problems(plan: PlanFile, current: Inputs | None = None) -> list[str]:
    """All problems of a plan; with `current`, those with the inputs that it would be made from now, too."""
    found = shard_problems(plan) + memory_problems(plan)
    if plan.inputs.digest() != plan.digest:
        found.append("its inputs were changed after it was made (their digest differs): make it anew")
    if current is not None:
        found += model_problems(plan, current.tables, current.optimizer) + stale_inputs(plan, current)
    return found


def shard_problems(plan: PlanFile) -> list[str]:
    """Every table is placed once, and its shards cover it exactly, on ranks that exist."""
    tables = {table.name: table for table in plan.inputs.tables}
    placed = dict(plan.placed())
    found = [f"table {name} has no place in the plan" for name in tables if name not in placed]
    found += [f"table {name} is placed, but is no table of the model" for name in placed if name not in tables]
    for name, sharding in placed.items():
        if name in tables:
            found += _table_problems(tables[name], sharding, plan.inputs.cluster)
    return found


def memory_problems(plan: PlanFile) -> list[str]:
    """Weights and optimizer state, computed from the shards, and the planner's whole estimate fit each rank."""
    hbm_cap, ddr_cap = plan.inputs.cluster.memory_bytes()
    found = []
    for kind, cap, used in (("HBM", hbm_cap, hbm_use(plan)), ("DDR", ddr_cap, ddr_use(plan))):
        for rank, have in enumerate(used):
            if have > cap:
                found.append(
                    f"rank {rank} needs {have / GIB:.2f} GiB of {kind}, {(have - cap) / GIB:.2f} more than it has"
                )
    return found


def hbm_use(plan: PlanFile) -> list[float]:
    """Bytes of HBM on each rank: the estimate, or the shards' weights and optimizer state, if that is more."""
    return _use(plan, in_hbm=True)


def ddr_use(plan: PlanFile) -> list[float]:
    """Bytes of host memory on each rank, in the same way."""
    return _use(plan, in_hbm=False)


def model_problems(plan: PlanFile, tables: Sequence[Table], optimizer: str) -> list[str]:
    """The plan's tables are the model's, and so is its optimizer."""
    planned = {table.name: table for table in plan.inputs.tables}
    found = [f"table {table.name} of the model is not in the plan" for table in tables if table.name not in planned]
    names = {table.name for table in tables}
    found += [f"table {name} of the plan is not in the model" for name in planned if name not in names]
    for table in tables:
        other = planned.get(table.name)
        if other and (other.rows, other.dim, other.data_type) != (table.rows, table.dim, table.data_type):
            found.append(
                f"table {table.name} is {other.rows} x {other.dim} {other.data_type} in the plan, {table.rows} x "
                f"{table.dim} {table.data_type} in the model"
            )
        elif other and other.managed != table.managed:
            words = [f"{'managed' if each.managed else 'no managed'} collisions" for each in (other, table)]
            found.append(f"table {table.name} has {words[0]} in the plan, {words[1]} in the model")
        elif other and other.features != table.features:
            found.append(f"table {table.name} serves {other.features} in the plan, {table.features} in the model")
    if plan.inputs.optimizer != optimizer:
        found.append(f"the tables' optimizer is {plan.inputs.optimizer} in the plan, {optimizer} in the config")
    return found


def stale_inputs(plan: PlanFile, current: Inputs) -> list[str]:
    """What the plan was made from and what it would be made from now differ."""
    old = plan.inputs
    ids = ([t.ids_per_sample for t in old.tables], [t.ids_per_sample for t in current.tables])
    without_rules = old.constraints is None and current.constraints is None
    differences = {
        f"stale: batch size {old.batch_size} in the plan, {current.batch_size} in the config": (
            old.batch_size != current.batch_size
        ),
        "stale: the ids a sample has differ (model.multi_hot_sizes)": ids[0] != ids[1],
        "stale: the layers around the tables differ (model section)": old.dense != current.dense,
        "stale: the precision of the exchange differs (sharding.comm_precision)": old.comm_precision
        != current.comm_precision,
        f"stale: the constraints differ from {current.constraints_file or 'none'}": old.constraints
        != current.constraints,
        f"stale: sharding types {list(old.sharding_types)} in the plan, {list(current.sharding_types)} in the config": (
            without_rules and old.sharding_types != current.sharding_types
        ),
        f"world size: the plan is for {old.cluster.size} ranks, not for {current.cluster.size}": (
            old.cluster.size != current.cluster.size
        ),
        f"stale: cluster {old.cluster.name} is described otherwise now: {_changed_constants(old, current)}": (
            old.cluster.constants != current.cluster.constants
        ),
    }
    return [line for line, differs in differences.items() if differs]


def _changed_constants(old: Inputs, new: Inputs) -> str:
    names = type(old.cluster.constants).model_fields
    return ", ".join(name for name in names if old.cluster.value(name) != new.cluster.value(name)) or "other sources"


def _table_problems(table: Table, sharding: TableSharding, cluster: Cluster) -> list[str]:
    name, kind, ranks = f"table {table.name}", sharding.sharding_type, sharding.ranks or ()
    if kind not in SHARDING_TYPES:
        return [f"{name}: no sharding type {kind!r}"]
    bad = [rank for rank in ranks if not 0 <= rank < cluster.world_size]
    if bad:
        return [f"{name}: rank {bad[0]} does not exist among {cluster.world_size}"]
    if kind == "data_parallel":
        everywhere = not ranks or set(ranks) == set(range(cluster.world_size))
        return [] if everywhere else [f"{name}: is data-parallel, but not on every rank"]
    shards = sharding.shards or ()
    if not shards or len(shards) != len(ranks):
        return [f"{name}: {len(shards)} shards for {len(ranks)} ranks"]
    return [*_misplaced(name, shards, ranks, cluster), *_coverage(table, shards)]


def _misplaced(name: str, shards: Sequence[Shard], ranks: Sequence[int], cluster: Cluster) -> Iterator[str]:
    for shard, rank in zip(shards, ranks, strict=True):
        device = "cpu" if cluster.device == "cpu" else f"cuda:{rank % cluster.devices_per_host}"
        if shard.placement != f"rank:{rank}/{device}":
            yield f"{name}: the shard of rank {rank} is placed on {shard.placement}, not on rank:{rank}/{device}"


def _coverage(table: Table, shards: Sequence[Shard]) -> Iterator[str]:
    inside = True
    for shard in shards:
        (row, column), (rows, columns) = shard.offsets, shard.sizes
        if min(row, column) < 0 or min(rows, columns) < 1 or row + rows > table.rows or column + columns > table.dim:
            yield (
                f"table {table.name}: shard of {rows} x {columns} at ({row}, {column}) is beyond the table of "
                f"{table.rows} x {table.dim}"
            )
            inside = False
    overlap = _first_overlap(shards)
    if overlap:
        yield f"table {table.name}: shards at {overlap[0].offsets} and {overlap[1].offsets} overlap"
    elif inside and sum(shard.sizes[0] * shard.sizes[1] for shard in shards) != table.rows * table.dim:
        yield f"table {table.name}: its shards leave a part of it without a place"


def _first_overlap(shards: Sequence[Shard]) -> tuple[Shard, Shard] | None:
    """Two shards that share a cell. Shards are visited by first row; those that end above it are left behind."""
    active: list[Shard] = []
    for shard in sorted(shards, key=lambda each: each.offsets):
        active = [each for each in active if each.offsets[0] + each.sizes[0] > shard.offsets[0]]
        for other in active:
            if (
                other.offsets[1] < shard.offsets[1] + shard.sizes[1]
                and shard.offsets[1] < other.offsets[1] + other.sizes[1]
            ):
                return other, shard
        active.append(shard)
    return None


def _use(plan: PlanFile, in_hbm: bool) -> list[float]:
    size = plan.world_size
    estimated, needed = [0.0] * size, [0.0] * size
    tables = {table.name: table for table in plan.inputs.tables}
    for name, estimate in plan.estimates.items():
        for shard in estimate.shards:
            if 0 <= shard.rank < size and name in tables:
                estimated[shard.rank] += shard.hbm if in_hbm else shard.ddr
    for name, sharding in plan.placed():
        on_device = plan.inputs.cluster.device == "cuda" and sharding.compute_kernel in ("fused", "dense")
        if name in tables and on_device is in_hbm:
            for rank, bytes_here in _weights(tables[name], sharding, size):
                needed[rank] += bytes_here
    return [max(each) for each in zip(estimated, needed, strict=True)]


def _weights(table: Table, sharding: TableSharding, world_size: int) -> Iterator[tuple[int, float]]:
    """Bytes of weights and optimizer state of each shard, with its rank."""
    if sharding.sharding_type == "data_parallel":
        yield from ((rank, table.rows * table.bytes_per_row) for rank in range(world_size))
        return
    for shard, rank in zip(sharding.shards or (), sharding.ranks or (), strict=False):
        if 0 <= rank < world_size:
            yield rank, shard.sizes[0] * table.bytes_per_row * shard.sizes[1] / table.dim

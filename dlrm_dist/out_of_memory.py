"""Running out of memory: said with the rank and its tables."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dlrm_dist.errors import RunFailedError, first_line
from dlrm_dist.planning.plan_file import PlanFile


@contextmanager
def named(rank: int, plan: PlanFile) -> Iterator[None]:
    """Turn an allocation that fails inside into a RunFailedError that names the rank and its largest table.

    Raises:
        RunFailedError: memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        tables = sorted(tables_of(plan, rank).items(), key=lambda each: -each[1])
        total = sum(size for _, size in tables) / 2**30
        largest = f", the largest {tables[0][0]} with {tables[0][1] / 2**30:.3g} GiB" if tables else ""
        raise RunFailedError(
            f"rank {rank} ran out of memory: {first_line(error)[:200]}; its tables and their optimizer state take "
            f"{total:.3g} GiB{largest}; use more ranks, another plan (dlrm-dist plan fit), or a smaller batch",
            speaker=rank,
        ) from None


def tables_of(plan: PlanFile, rank: int) -> dict[str, float]:
    """Bytes of weights and optimizer state that a rank holds of each table."""
    bytes_per_row = {table.name: (table.bytes_per_row, table.dim, table.rows) for table in plan.inputs.tables}
    found: dict[str, float] = {}
    for name, sharding in plan.placed():
        each, dim, rows = bytes_per_row[name]
        if sharding.shards is None:
            found[name] = each * rows
            continue
        for shard in sharding.shards:
            if shard.placement.startswith(f"rank:{rank}/"):
                found[name] = found.get(name, 0.0) + each * shard.sizes[0] * shard.sizes[1] / dim
    return found


def _is_out_of_memory(error: Exception) -> bool:
    """Torch's CPU allocator raises a plain RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)

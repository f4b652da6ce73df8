"""What another sharding of one table would have cost, all other tables staying where they are."""

from collections.abc import Sequence

from torchrec.distributed.planner.types import ShardingOption

from dlrm_dist.planning import estimates
from dlrm_dist.planning.cluster import Cluster
from dlrm_dist.planning.plan_file import Alternative, ShardEstimate

Shards = Sequence[ShardEstimate]


class _Load:
    """Milliseconds and bytes on each rank."""

    def __init__(self, cluster: Cluster, tables: Sequence[Shards]) -> None:
        self.caps = cluster.memory_bytes()
        self.milliseconds = [0.0] * cluster.world_size
        self.used = [[0, 0] for _ in range(cluster.world_size)]
        for shards in tables:
            for shard in shards:
                self.add(shard.rank, shard)

    def add(self, rank: int, shard: ShardEstimate, sign: int = 1) -> None:
        self.milliseconds[rank] += sign * shard.milliseconds
        self.used[rank][0] += sign * shard.hbm
        self.used[rank][1] += sign * shard.ddr

    def fits(self, rank: int, shard: ShardEstimate) -> bool:
        used = self.used[rank]
        return used[0] + shard.hbm <= self.caps[0] and used[1] + shard.ddr <= self.caps[1]


def of_tables(
    chosen: dict[str, ShardingOption],
    options: Sequence[ShardingOption],
    shards: dict[str, tuple[ShardEstimate, ...]],
    cluster: Cluster,
) -> dict[str, tuple[Alternative, ...]]:
    """For each table the options that the plan did not take, the best first."""
    load = _Load(cluster, list(shards.values()))
    found: dict[str, list[Alternative]] = {name: [] for name in chosen}
    for option in options:
        taken = chosen[option.name]
        if (option.sharding_type, option.compute_kernel) == (taken.sharding_type, taken.compute_kernel):
            continue
        candidate = estimates.of_shards(option)
        for shard in shards[option.name]:
            load.add(shard.rank, shard, -1)
        found[option.name].append(
            Alternative(
                sharding_type=option.sharding_type,
                compute_kernel=option.compute_kernel,
                slowest_rank=_place(candidate, option.partition_by, cluster.devices_per_host, load),
                bytes=sum(shard.hbm + shard.ddr for shard in candidate),
            )
        )
        for shard in shards[option.name]:
            load.add(shard.rank, shard)
    key = lambda each: float("inf") if each.slowest_rank is None else each.slowest_rank  # noqa: E731
    return {name: tuple(sorted(each, key=key)) for name, each in found.items()}


def _place(shards: Shards, partition_by: str, devices_per_host: int, load: _Load) -> float | None:
    """The slowest rank's milliseconds with the shards put where they cost least, None if they do not fit there."""
    ranks = range(len(load.milliseconds))
    placed: list[tuple[int, ShardEstimate]] = []
    if partition_by == "uniform":
        candidates = [[rank] for rank in ranks]
    elif partition_by == "device":
        candidates = [list(ranks) for _ in shards]
    else:  # whole hosts, the least loaded first
        hosts = [ranks[first : first + devices_per_host] for first in range(0, len(ranks), devices_per_host)]
        hosts.sort(key=lambda host: max(load.milliseconds[rank] for rank in host))
        candidates = [[hosts[i // devices_per_host % len(hosts)][i % devices_per_host]] for i in range(len(shards))]
    slowest: float | None = None
    for shard, allowed in zip(shards, candidates, strict=True):
        fitting = [rank for rank in allowed if load.fits(rank, shard)]
        if not fitting:
            break
        rank = min(fitting, key=lambda rank: load.milliseconds[rank])
        load.add(rank, shard)
        placed.append((rank, shard))
    else:
        slowest = round(max(load.milliseconds), 6)
    for rank, shard in placed:
        load.add(rank, shard, -1)
    return slowest

"""The planner's expectation of each shard, in the plan file's terms."""

from torchrec.distributed.planner.types import ShardingOption

from dlrm_dist.planning.plan_file import ShardEstimate


def of_shards(option: ShardingOption) -> tuple[ShardEstimate, ...]:
    """The estimates of an option's shards; a shard that has no rank yet gets its number instead."""
    return tuple(
        ShardEstimate(
            rank=number if shard.rank is None else shard.rank,
            hbm=shard.storage.hbm,
            ddr=shard.storage.ddr,
            id_exchange=_round(shard.perf.input_dist_comms),
            lookup=_round(shard.perf.fwd_compute + shard.perf.prefetch_compute),
            forward_exchange=_round(shard.perf.fwd_comms),
            backward_exchange=_round(shard.perf.bwd_comms),
            update=_round(shard.perf.bwd_compute),
        )
        for number, shard in enumerate(option.shards)
    )


def _round(milliseconds: float) -> float:
    """To a nanosecond: what is below says nothing."""
    return round(float(milliseconds), 6)

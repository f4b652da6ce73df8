import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from dlrm_dist.data.order import EpochOrder
from dlrm_dist.data.schema import LANES, stripe_group_rows

PROFILE = settings(max_examples=100, deadline=None, derandomize=True)


@st.composite
def orders(draw):
    return EpochOrder(
        rows=draw(st.integers(1, 150)),
        lanes=draw(st.integers(1, 12)),
        group_rows=draw(st.integers(1, 6)),
        batch_size=draw(st.integers(1, 60)),
        seed=draw(st.none() | st.integers(0, 3)),
        epoch=draw(st.integers(0, 3)),
        drop_last=draw(st.booleans()),
    )


def rank_rows(order, rank, world_size):
    """The rank's rows of the whole epoch, as (stripe, row within the stripe as stored) [n, 2], in training order."""
    out = [np.empty((0, 2), dtype=np.int64)]
    for stripe in order.stripes:
        sizes = stripe_group_rows(order.stripe_rows(stripe), order.lanes)
        starts = np.cumsum([0, *sizes])
        own = [np.arange(starts[lane], starts[lane + 1]) for lane in range(rank, order.lanes, world_size)]
        if own:  # ranks beyond the lanes own none
            rows = np.concatenate(own)[order.local_order(stripe, rank, world_size)]
            out.append(np.stack([np.full_like(rows, stripe), rows], axis=1))
    return np.concatenate(out)


def shares(order, world_size):
    """For each step, each rank's rows [n, 2]."""
    bounds = [order.step_bounds(step) for step in range(order.num_steps)]
    edges = [0, *(stop for _, stop in bounds)]
    cuts = []
    for rank in range(world_size):
        rows, positions = rank_rows(order, rank, world_size), order.rank_position(edges, rank, world_size)
        cuts.append([rows[start:stop] for start, stop in itertools.pairwise(positions)])
    return [list(step) for step in zip(*cuts, strict=True)]


def as_set(pieces):
    return {tuple(row) for piece in pieces for row in piece.tolist()}


@PROFILE
@given(order=orders(), data=st.data())
@example(order=EpochOrder(rows=5, lanes=12, group_rows=3, batch_size=2, seed=0), data=None)
@example(order=EpochOrder(rows=100, lanes=6, group_rows=4, batch_size=60, seed=1), data=None)
def test_a_step_has_the_same_rows_for_every_world_size(order, data):
    world_size = data.draw(st.integers(2, 2 * order.lanes)) if data and order.lanes > 1 else 2
    alone, together = shares(order, 1), shares(order, world_size)
    assert len(alone) == len(together) == order.num_steps
    for step, (one, several) in enumerate(zip(alone, together, strict=True)):
        start, stop = order.step_bounds(step)
        assert sum(map(len, several)) == len(as_set(several)) == stop - start
        assert as_set(several) == as_set(one)


@PROFILE
@given(order=orders(), world_size=st.integers(1, 24))
def test_an_epoch_has_each_row_once(order, world_size):
    order = dataclasses.replace(order, drop_last=False)
    seen = [tuple(row) for step in shares(order, world_size) for piece in step for row in piece.tolist()]
    stripe_size = order.lanes * order.group_rows
    assert sorted(seen) == [divmod(row, stripe_size) for row in range(order.rows)]


@PROFILE
@given(order=orders())
def test_only_the_last_partial_batch_is_dropped(order):
    kept, dropped = (dataclasses.replace(order, drop_last=drop) for drop in (False, True))
    partial = order.rows % order.batch_size > 0
    assert (kept.num_steps, dropped.num_steps) == (-(-order.rows // order.batch_size), order.rows // order.batch_size)
    assert kept.num_steps - dropped.num_steps == partial
    bounds = [kept.step_bounds(step) for step in range(kept.num_steps)]
    assert [start for start, _ in bounds] == [0, *(stop for _, stop in bounds[:-1])] and bounds[-1][1] == order.rows


@PROFILE
@given(order=orders(), world_size=st.integers(1, 24))
def test_rank_position_counts_the_ranks_rows(order, world_size):
    """Against counting one by one: position p of a stripe is in lane p % lanes, which is rank (lane % world size)'s."""
    owner = np.concatenate([np.arange(order.stripe_rows(s)) % order.lanes % world_size for s in order.stripes])
    for rank in range(world_size):
        expected = np.concatenate([[0], np.cumsum(owner == rank)])
        everywhere = order.rank_position(np.arange(order.rows + 1), rank, world_size)
        assert everywhere.tolist() == expected.tolist()
        assert int(order.rank_position(order.rows // 2, rank, world_size)) == expected[order.rows // 2]


@PROFILE
@given(order=orders(), world_size=st.integers(1, 24))
def test_local_batch_size_is_the_largest_share(order, world_size):
    assume(order.num_steps > 0)
    sizes = [len(piece) for step in shares(order, world_size) for piece in step]
    assert order.per_rank_batch_size(world_size) == max(sizes)


@PROFILE
@given(
    each=st.integers(1, 12),
    world_size=st.integers(1, 12),
    group_rows=st.integers(1, 6),
    rows=st.integers(1, 20),
    batch_size=st.integers(1, 90),
    seed=st.integers(0, 3),
)
def test_shares_are_even_where_the_lanes_divide(each, world_size, group_rows, rows, batch_size, seed):
    order = EpochOrder(rows * world_size, each * world_size, group_rows, batch_size, seed)
    assert order.per_rank_batch_size(world_size) == -(-min(batch_size, order.rows) // world_size)


@pytest.mark.parametrize("world_size", [1, 3])
def test_seeds_and_epochs_give_orders_of_their_own(world_size):
    """500 rows in 4 stripes: two equal orders by chance are as good as impossible."""

    def rows(seed, epoch):
        order = EpochOrder(rows=500, lanes=6, group_rows=24, batch_size=50, seed=seed, epoch=epoch)
        return tuple(map(tuple, rank_rows(order, 0, world_size).tolist()))

    found = {rows(seed, epoch) for seed in range(4) for epoch in range(4)}
    assert len(found) == 16
    assert rows(2, 3) == rows(2, 3)
    assert rows(0, 1) not in {rows(1, 0), rows(0, 0)}


def test_stripes_are_shuffled_and_so_is_each_row_group_for_itself():
    order = EpochOrder(rows=4 * 6 * 24, lanes=6, group_rows=24, batch_size=50, seed=0)
    visited = {tuple(dataclasses.replace(order, seed=seed).stripes.tolist()) for seed in range(40)}
    assert len(visited) > 12  # of 24; 40 draws leave 12 or fewer with a chance below 1e-6
    lanes = {tuple(rank_rows(order, lane, 6)[:, 1] - lane * 24) for lane in range(6)}
    assert len(lanes) == 6 and all(sorted(lane) == sorted([*range(24)] * 4) for lane in lanes)


def test_a_row_comes_to_every_place_of_its_lane():
    """Row 0 of 8 in a lane: over 400 seeds each place is expected 50 times (standard deviation 6.6)."""
    order = EpochOrder(rows=16, lanes=2, group_rows=8, batch_size=4, seed=0)
    places = [dataclasses.replace(order, seed=s).local_order(0, 0, 2).tolist().index(0) for s in range(400)]
    counts = np.bincount(places, minlength=8)
    assert counts.min() > 50 - 5 * 6.6 and counts.max() < 50 + 5 * 6.6


@PROFILE
@given(order=orders())
def test_without_a_seed_rows_come_as_stored(order):
    order = dataclasses.replace(order, seed=None)
    assert order.stripes.tolist() == sorted(order.stripes.tolist())
    for lane in range(order.lanes):
        rows = [tuple(row) for row in rank_rows(order, lane, order.lanes).tolist()]
        assert rows == sorted(rows)
    assert rank_rows(order, 0, 1).tolist() == rank_rows(dataclasses.replace(order, epoch=9), 0, 1).tolist()


@pytest.mark.parametrize("seed", [None, 0])
def test_no_rank_decodes_more_than_its_share(seed):
    """At most 1.2 times the fair share for up to 64 ranks; 64 fairly divided lanes would mean 2 times for 63 ranks."""
    order = EpochOrder(rows=LANES * 2, lanes=LANES, group_rows=2, batch_size=64, seed=seed)
    for world_size in range(1, 65):
        decoded = [len(order.local_order(0, rank, world_size)) for rank in (0, world_size - 1)]
        assert sum(order.rank_position(order.rows, rank, world_size) for rank in range(world_size)) == order.rows
        assert max(decoded) <= 1.2 * order.rows / world_size

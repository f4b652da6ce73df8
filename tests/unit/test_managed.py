"""The map from ids to rows of tables with managed collisions, in one process."""

import pytest
import torch
from torchrec.sparse.jagged_tensor import JaggedTensor

from dlrm_dist.models import managed
from dlrm_dist.models.managed import POLICIES, ManagedIds, mixed

LARGEST = (1 << 63) - 1
EMPTY = LARGEST


def ids_of(*values):
    tensor = torch.tensor(values, dtype=torch.int64)
    return {"t": JaggedTensor(tensor, lengths=torch.ones(len(tensor), dtype=torch.int32))}


def make(rows=5, policy="lfu", interval=2, offset=0):
    """A rank's part, rows `offset` to `offset + rows` - 1; ids are as they are given, for the eye."""
    whole = ManagedIds(
        zch_size=2 * rows,
        device=torch.device("meta"),
        eviction_policy=POLICIES[policy](),
        eviction_interval=interval,
        input_hash_size=LARGEST,
    )
    return whole.rebuild_with_output_id_range((offset, offset + rows), [0, rows, 2 * rows], torch.device("cpu"))


def step(part, *values):
    return part(ids_of(*values))["t"].values().tolist()


def test_mixed_ids_are_one_to_one_and_never_the_mark_of_an_empty_row():
    """Undone step by step, with the inverses of the factors."""

    def unmixed(ids):
        ids = ids ^ managed._AT_LARGEST
        ids = ids ^ (ids >> 32)
        ids = ids * pow(0x3C6EF372FE94F82B, -1, 1 << 63) & LARGEST
        ids = ids ^ (ids >> 29) ^ (ids >> 58)
        ids = ids * pow(0x6A09E667F3BCC909, -1, 1 << 63) & LARGEST
        return ids ^ (ids >> 32)

    generator = torch.Generator().manual_seed(1)
    ids = torch.cat(
        [
            torch.arange(1000),
            torch.randint(1 << 32, (1000,), generator=generator),
            torch.randint(LARGEST, (1000,), generator=generator),
            LARGEST - 1 - torch.arange(1000),
        ]
    )
    found = mixed(ids)
    assert torch.equal(unmixed(found), ids)
    assert found.min() >= 0 and found.max() < LARGEST
    assert mixed(torch.tensor([LARGEST])).item() == LARGEST  # so no id is mixed to it
    assert torch.equal(mixed(ids[:1000].to(torch.int32)), found[:1000])


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_mixed_ids_of_a_log_fall_evenly_on_the_ranks(ranks):
    """Criteo's are below 2^32, and small numbers and even ones are common."""
    for ids in (torch.arange(9000), 1024 * torch.arange(9000), (1 << 62) + torch.arange(9000)):
        counts = torch.bincount(mixed(ids) // -(-LARGEST // ranks), minlength=ranks)
        assert len(counts) == ranks and counts.min() > 0.9 * 9000 / ranks


def test_an_id_has_a_row_of_its_own_once_it_was_counted_and_the_last_row_before():
    part = make(rows=5, interval=2, offset=5)
    assert step(part, 70, 80) == [9, 9]
    rows = step(part, 70, 80, 90)  # counted before the lookup
    assert len(set(rows)) == 3 and set(rows) <= {5, 6, 7, 8}
    assert step(part, 90, 80, 70, 60) == [rows[2], rows[1], rows[0], 9]


@pytest.mark.parametrize(
    ("policy", "kept"), [("lfu", {1, 2, 5, 6}), ("lru", {2, 3, 5, 6}), ("distance_lfu", {1, 3, 5, 6})]
)
def test_the_policies_differ_in_whom_they_keep(policy, kept):
    """By count: 20, 2, 1, 1 and of the new ones 3; by age in steps: 10, 5, 2, 10 and 1; or by their quotient."""
    part = make(rows=5, policy=policy, interval=1)
    for values in ([1] * 20 + [4], [], [], [], [], [2, 2], [], [], [3], [5, 5, 5, 6, 6, 6]):
        step(part, *values)
    part.eval()
    assert {id_ for id_ in range(1, 7) if step(part, id_) != [4]} == kept


def test_the_row_of_an_id_that_goes_is_reported_and_others_stay_where_they_were():
    part = make(rows=3, interval=1)
    first = dict(zip([1, 2], step(part, 1, 1, 1, 2)[2:], strict=True))
    assert sorted(part.evict().tolist()) == sorted(first.values())
    rows = step(part, 1, 3, 3)
    assert rows == [first[1], first[2], first[2]]
    assert part.evict().tolist() == [first[2]]
    assert step(part, 2) == [2] and part.evict().tolist() == []


def test_looking_up_without_training_changes_nothing():
    part = make(interval=1)
    step(part, 1, 2)
    before = {name: value.clone() for name, value in part.named_buffers()}
    part.eval()
    for _ in range(3):
        assert step(part, 9, 9, 9) == [4, 4, 4]
    assert all(torch.equal(value, before[name]) for name, value in part.named_buffers())
    assert part.steps_since_count() == 0 and len(part.notes()["ids"]) == 0


@pytest.mark.parametrize("sizes", [(0, 3000), (1, 3000), (5, 0)])
def test_no_id_is_missed_when_the_first_batch_is_small(sizes):
    """TorchRec makes room by the first batch, and drops what does not fit."""
    part = make(rows=4001, interval=2)
    start = 0
    for size in sizes:
        step(part, *range(start, start + size))
        start += size
    assert (part._mch_sorted_raw_ids != EMPTY).sum() == start


def test_notes_take_no_more_memory_however_many_ids_come():
    part = make(rows=50, interval=4)
    sizes = set()
    for number in range(60):
        step(part, *range(number * 1000, number * 1000 + 1000))
        sizes.add((part._history_accumulator.numel(), sum(value.numel() for value in part.buffers())))
    assert len(sizes) <= 3 and max(size for size, _ in sizes) <= 2 * 4 * 1000


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("done", [0, 1, 5, 6])
def test_restored_notes_go_on_as_if_nothing_had_happened(policy, done):
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(12, (20,), generator=generator).tolist() for _ in range(12)]
    whole, part = make(policy=policy, interval=3), make(policy=policy, interval=3)
    for batch in batches[:done]:
        step(whole, *batch)
    part.load_state_dict(whole.state_dict())
    part.restore({name: value.clone() for name, value in whole.notes().items()}, whole.steps_since_count())
    for batch in batches[done:]:
        assert step(part, *batch) == step(whole, *batch)
        assert all(torch.equal(a, b) for a, b in zip(part.buffers(), whole.buffers(), strict=True))


def test_a_shorter_interval_counts_at_once():
    """TorchRec asks whether exactly so many steps are over."""
    whole, part = make(interval=9), make(interval=3)
    for _ in range(7):
        step(whole, 1)
    part.load_state_dict(whole.state_dict())
    part.restore(whole.notes(), whole.steps_since_count())
    assert step(part, 2, 1) != [4, 4] == step(whole, 2, 1)

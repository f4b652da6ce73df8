"""Batches as ranks see them; every row of these datasets carries its number."""

import dataclasses
import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dlrm_dist.data.batch import ClickBatch
from dlrm_dist.data.loader import SplitReader
from dlrm_dist.data.schema import read_info
from dlrm_dist.errors import RankError, UserError
from tests.helpers import LANES, MODULUS, numbered_dataset

ROWS = 163
"""Four stripes of 48 rows, the last of 19: seven lanes have two of its rows, five have one."""
WORLD_SIZES = [1, 2, 3, 5, 8]
BATCH_SIZES = [7, 10, 64]
"""Fewer rows than ranks; less than a stripe; more than a stripe. None divides the rows."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loader") / "data"
    numbered_dataset(folder, {"train": ROWS, "valid": 5})
    return folder


def reader(folder, rank=0, world_size=1, split="train"):
    return SplitReader(folder, read_info(folder), split, rank, world_size)


def steps(folder, world_size, batch_size, seed=0, epoch=0, drop_last=False, first_step=0, split="train"):
    """For each step, every rank's batch."""
    readers = [reader(folder, rank, world_size, split) for rank in range(world_size)]
    order = readers[0].order(batch_size, seed, epoch, drop_last)
    return list(zip(*(each.batches(order, first_step) for each in readers), strict=True))


def numbers(batch):
    """The numbers of a batch's rows, in its order; checks that all columns tell the same."""
    count = int(batch.weights.sum())
    number = batch.sparse["C1"].values().long()
    assert torch.equal(batch.dense[:count, 0], number.float())
    assert torch.equal(batch.dense[:count, 1], torch.from_numpy(np.sin(number.numpy()).astype(np.float32)))
    assert torch.equal(batch.labels[:count], (number % 3 == 0).float())
    assert torch.equal(batch.sparse["C2"].values().long(), number % MODULUS)
    return number.tolist()


def all_numbers(found):
    return [[number for batch in ranks for number in numbers(batch)] for ranks in found]


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_every_row_comes_once_an_epoch_and_in_the_step_it_has_on_one_rank(dataset, world_size, batch_size):
    found, alone = (all_numbers(steps(dataset, size, batch_size, seed=3)) for size in (world_size, 1))
    assert sorted(itertools.chain(*found)) == list(range(ROWS))
    assert [sorted(step) for step in found] == [sorted(step) for step in alone]
    assert [len(step) for step in found] == [batch_size] * (ROWS // batch_size) + [ROWS % batch_size]


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_batches_are_of_equal_size_and_padded_with_rows_of_no_weight(dataset, world_size, batch_size):
    found = steps(dataset, world_size, batch_size)
    local = reader(dataset).order(batch_size, 0).per_rank_batch_size(world_size)
    fillers = 0
    for batch in itertools.chain(*found):
        count = int(batch.weights.sum())
        is_row = torch.arange(local) < count
        fillers += local - count
        assert torch.equal(batch.weights, is_row.float())
        assert batch.labels.shape == (local,) and not batch.labels[count:].any()
        assert batch.dense.shape == (local, 2) and not batch.dense[count:].any()
        assert batch.sparse.keys() == ["C1", "C2"] and batch.sparse.stride() == local
        # FBGEMM's kernels read the memory as it lies, strides or not: a view of one row would give them other ids.
        assert batch.sparse.values().is_contiguous() and batch.dense.is_contiguous()
        for key in batch.sparse.keys():  # noqa: SIM118  (a jagged tensor is no dict)
            assert torch.equal(batch.sparse[key].lengths(), is_row.int())
    assert fillers == local * len(found) * world_size - ROWS


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_loss_scale_makes_a_mean_over_ranks_one_over_rows(dataset, world_size):
    found = steps(dataset, world_size, 10)
    rows = [10] * (len(found) - 1) + [ROWS % 10]
    for ranks, count in zip(found, rows, strict=True):
        assert {batch.loss_scale.item() for batch in ranks} == {torch.tensor(world_size / count).item()}
        # The mean over ranks of (sum of losses * scale), for losses of 1, is 1; float32 rounds at 6e-8.
        assert sum((batch.weights.sum() * batch.loss_scale).item() for batch in ranks) / world_size == pytest.approx(
            1, rel=1e-6
        )


def test_types(dataset):
    batch = steps(dataset, 2, 10)[0][0]
    assert {tensor.dtype for tensor in (batch.dense, batch.labels, batch.weights, batch.loss_scale)} == {torch.float32}
    assert (batch.sparse.values().dtype, batch.sparse.lengths().dtype) == (torch.int32, torch.int32)
    assert batch.loss_scale.shape == ()


def test_ids_beyond_32_bits_stay_whole(tmp_path):
    numbered_dataset(tmp_path / "data", {"train": 20}, table_rows=(1 << 31) + 1)
    batch = steps(tmp_path / "data", 1, 20)[0][0]
    assert batch.sparse.values().dtype == torch.int64
    assert sorted(numbers(batch)) == list(range(20))
    largest = 1 << 31
    replace_column(tmp_path / "data", "C1", pa.array([largest] * 20, pa.int64()))
    assert set(steps(tmp_path / "data", 1, 20)[0][0].sparse["C1"].values().tolist()) == {largest}


def test_a_rank_without_rows_gets_batches_of_fillers_alone(dataset):
    """Five rows on eight ranks: lanes 5, 6 and 7 have none."""
    (ranks,) = steps(dataset, 8, 100, seed=None, split="valid")
    assert [numbers(batch) for batch in ranks] == [[0], [1], [2], [3], [4], [], [], []]
    assert {(batch.dense.shape, batch.sparse.stride()) for batch in ranks} == {((1, 2), 1)}
    assert {batch.loss_scale.item() for batch in ranks} == {torch.tensor(8 / 5).item()}


def test_evaluation_keeps_the_stored_order_in_each_lane(dataset):
    found = all_numbers(steps(dataset, 1, 10, seed=None))
    lane = [number for step in found for number in step if 0 <= number % 48 < 4 and number < 144]
    assert lane == sorted(lane) == [stripe * 48 + row for stripe in range(3) for row in range(4)]
    # One row of each of the 12 lanes of 4 rows in turn.
    assert found[0] == [4 * lane for lane in range(10)]


@pytest.mark.parametrize("world_size", [1, 3])
def test_drop_last_drops_the_partial_batch_alone(dataset, world_size):
    kept, dropped = (all_numbers(steps(dataset, world_size, 10, drop_last=drop)) for drop in (False, True))
    assert dropped == kept[:-1] and len(kept[-1]) == ROWS % 10
    assert steps(dataset, world_size, ROWS + 1, drop_last=True) == []


@pytest.mark.parametrize("batch_size", [10, 64])
@pytest.mark.parametrize("world_size", [1, 5])
def test_from_a_step_on_is_all_but_what_comes_before(dataset, world_size, batch_size):
    whole = all_numbers(steps(dataset, world_size, batch_size, seed=1))
    for first in range(len(whole) + 1):
        assert all_numbers(steps(dataset, world_size, batch_size, seed=1, first_step=first)) == whole[first:]


def test_seeds_and_epochs_shuffle_anew(dataset):
    found = [all_numbers(steps(dataset, 1, 10, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert all(a != b for a, b in itertools.combinations(found, 2))
    assert all_numbers(steps(dataset, 1, 10, 1, 1)) == found[3]


def rewrite(folder, cuts):
    """Write the train split's row groups anew into parts that end before the row groups `cuts`."""
    info = read_info(folder)
    groups = []
    for part in info.splits["train"].parts:
        file = pq.ParquetFile(folder / part)
        groups += [file.read_row_group(group) for group in range(file.num_row_groups)]
        (folder / part).unlink()
    parts = []
    for start, stop in itertools.pairwise([0, *cuts, len(groups)]):
        parts.append(f"train/again-{start:05d}.parquet")
        with pq.ParquetWriter(folder / parts[-1], groups[0].schema) as writer:
            for group in groups[start:stop]:
                writer.write_table(group, row_group_size=max(1, group.num_rows))
    splits = info.splits | {"train": info.splits["train"].model_copy(update={"parts": tuple(parts)})}
    info.model_copy(update={"splits": splits}).write(folder)


@pytest.mark.parametrize("cuts", [[], [5, 6, 30]], ids=["one", "across stripes"])
def test_rows_do_not_depend_on_how_they_lie_in_parts(dataset, tmp_path, cuts):
    folder = tmp_path / "data"
    numbered_dataset(folder, {"train": ROWS})
    rewrite(folder, cuts)
    assert len(read_info(folder).splits["train"].parts) == len(cuts) + 1
    for world_size in (1, 5):
        assert all_numbers(steps(folder, world_size, 10)) == all_numbers(steps(dataset, world_size, 10))


def replace_column(folder, name, values):
    """Put other values into the one part of the train split."""
    path = folder / "train" / "part-00000.parquet"
    table = pq.read_table(path)
    field = table.schema.field(name)
    table = table.set_column(table.schema.get_field_index(name), field, values.cast(field.type))
    groups = pq.read_metadata(path)
    sizes = [groups.row_group(group).num_rows for group in range(groups.num_row_groups)]
    with pq.ParquetWriter(path, table.schema) as writer:
        for start, size in zip(np.cumsum([0, *sizes[:-1]]), sizes, strict=True):
            writer.write_table(table.slice(start, size), row_group_size=max(1, size))


@pytest.mark.parametrize("bad", [-1, MODULUS, 2**31 - 1])
def test_an_id_beyond_its_table_is_named(tmp_path, bad):
    folder = tmp_path / "data"
    numbered_dataset(folder, {"train": 20})
    replace_column(folder, "C2", pa.array([0] * 13 + [bad] + [6] * 6))
    with pytest.raises(RankError, match=rf"column C2: id {bad} lies outside its table of 7 rows \(0 to 6\)"):
        steps(folder, 1, 10)
    # Row 13 is the second of lane 6 (eight lanes have two rows, four have one), so that only its rank meets it.
    for rank in range(LANES):
        mine = reader(folder, rank, LANES)
        if rank == 6:
            with pytest.raises(RankError):
                list(mine.batches(mine.order(10, 0)))
        else:
            assert len(list(mine.batches(mine.order(10, 0)))) == 2


def test_unknown_split(dataset):
    with pytest.raises(UserError, match="has no split 'tset'; it has train, valid"):
        reader(dataset, split="tset")


def test_more_ranks_than_lanes(dataset):
    reader(dataset, 11, LANES)
    with pytest.raises(UserError, match="written in 12 lanes and serves at most as many ranks, not 13"):
        reader(dataset, 0, LANES + 1)


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "not parquet", "data"])
def test_a_damaged_part_is_one_line_that_names_it(tmp_path, damage):
    folder = tmp_path / "data"
    numbered_dataset(folder, {"train": 400}, group_rows=100)
    reading = reader(folder)
    (path,) = (folder / part for part in read_info(folder).splits["train"].parts)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        start = content.index(b"PAR1") + 4
        path.write_bytes(
            {
                "empty": b"",
                "cut": content[:-100],
                "not parquet": b"label\tI1\n" * 99,
                "data": content[:start] + b"\xff" * 800 + content[start + 800 :],
            }[damage]
        )
    with pytest.raises(UserError) as caught:
        list(reading.batches(reading.order(10, 0)))
    text = str(caught.value)
    assert "\n" not in text and text.startswith(f"{path}: ") and "; prepare " in text


@pytest.mark.parametrize("pin", [False, True])
def test_batches_are_pinned_where_that_is_asked_for(dataset, monkeypatch, pin):
    pinned = []

    def pin_memory(batch):
        pinned.append(dataclasses.replace(batch))
        return pinned[-1]

    monkeypatch.setattr(ClickBatch, "pin_memory", pin_memory)
    each = SplitReader(dataset, read_info(dataset), "train", 0, 1, pin)
    found = list(each.batches(each.order(10, seed=0)))
    assert len(pinned) == (len(found) if pin else 0)
    assert all(batch is other for batch, other in zip(found, pinned, strict=pin))


def test_a_batch_is_pinned_as_a_whole():
    class Part:
        def pin_memory(self):
            return self, "pinned"

    parts = [Part() for _ in dataclasses.fields(ClickBatch)]
    found = ClickBatch(*parts).pin_memory()
    assert [getattr(found, field.name) for field in dataclasses.fields(found)] == [(part, "pinned") for part in parts]


def test_a_batch_moves_as_a_whole(dataset):
    batch = steps(dataset, 1, 10)[0][0]
    moved = batch.to(torch.device("meta"))
    tensors = (
        moved.dense,
        moved.sparse.values(),
        moved.sparse.lengths(),
        moved.labels,
        moved.weights,
        moved.loss_scale,
    )
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.sparse.keys() == batch.sparse.keys()

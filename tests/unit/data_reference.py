"""The slow, obvious way from raw rows to a dataset's rows, and to the order in which training visits them."""

import itertools
from collections import Counter
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from dlrm_dist.data.loader import SplitReader

MASK = (1 << 64) - 1


class Row(NamedTuple):
    label: int
    dense: tuple
    ids: tuple
    """A number for each category, or a tuple of them."""
    weight: float = 1.0


def cut(rows, split):
    """Rows by split, in file order; a split without a share is not there."""
    count = len(rows)
    if split == "none":
        return {"train": rows}
    if split == "kaggle":
        held_out = count // 7
        test = count - held_out, count - held_out // 2
        return {"train": rows[: test[0]], "test": rows[slice(*test)], "valid": rows[test[1] :]}
    shares = [Fraction(share) for share in split.split(",")]
    ends = [int(count * sum(shares[:i])) for i in range(4)]
    cuts = zip(SPLITS, itertools.pairwise(ends), strict=True)
    return {name: rows[start:stop] for name, (start, stop) in cuts if stop > start}


SPLITS = ("train", "valid", "test")


def vocabulary(train_values, min_count):
    """The ids of a column's values (None: a missing one); all others have 0."""
    counts = Counter(train_values)
    kept = [value for value in counts if counts[value] >= min_count]
    kept.sort(key=lambda value: (-counts[value], -1 if value is None else value))
    return {value: id_ for id_, value in enumerate(kept, 1)}


def hashed(value, missing, rows):
    return (missing if value is None else value) % rows


def fnv1a(text):
    state = 0xCBF29CE484222325
    for byte in text.encode():
        state = ((state ^ byte) * 0x100000001B3) & MASK
    return state


def stored(folder, info, split):
    """The split's row groups as lists of rows."""
    groups = []
    for part in info.splits[split].parts:
        with pq.ParquetFile(folder / part) as file:
            groups += [rows_of(file.read_row_group(i).to_pylist(), info) for i in range(file.num_row_groups)]
    return groups


def rows_of(dicts, info):
    names = [category.name for category in info.categories]
    return [
        Row(
            each["label"],
            tuple(each[name] for name in info.dense),
            tuple(tuple(each[name]) if isinstance(each[name], list) else each[name] for name in names),
            each[info.weight] if info.weight else 1.0,
        )
        for each in dicts
    ]


def mixed(state):
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def permuted(rows, key, lane):
    """A row group's permutation: Fisher and Yates' shuffle by splitmix64."""
    rows = list(rows)
    state = mixed((key + lane * 0xD1342543DE82EF95) & MASK)
    for last in range(len(rows) - 1, 0, -1):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        other = ((mixed(state) >> 32) * (last + 1)) >> 32
        rows[last], rows[other] = rows[other], rows[last]
    return rows


def epoch(groups, lanes, seed, number):
    """The rows of an epoch in order, each with its lane."""
    stripes = [groups[start : start + lanes] for start in range(0, len(groups), lanes)]
    order = range(len(stripes))
    if seed is not None:
        order = np.random.default_rng([seed, number]).permutation(len(stripes)).tolist()
    for stripe in order:
        columns = stripes[stripe]
        if seed is not None:
            key = int(np.random.SeedSequence((seed, number, stripe)).generate_state(1, np.uint64)[0])
            columns = [permuted(rows, key, lane) for lane, rows in enumerate(columns)]
        for position in range(sum(map(len, columns))):
            lane = position % lanes
            yield lane, columns[lane][position // lanes]


def assert_prepared(folder, info, expected, shuffled):
    """What is stored is what is expected, and every rank's batches are its share of the order, of 1 and of 3 ranks."""
    assert list(info.splits) == list(expected)
    for name, rows in expected.items():
        groups = stored(folder, info, name)
        found = list(itertools.chain(*groups))
        if shuffled and name == "train":
            assert sorted(found) == sorted(rows)
        else:
            in_lanes = [
                row
                for start in range(0, len(groups), info.lanes)
                for row in itertools.chain(*groups[start:][: info.lanes])
            ]
            assert in_lanes == rows
        for seed, world_size in ((None, 1), (5, 1), (5, 3)):
            assert_loaded(folder, info, name, list(epoch(groups, info.lanes, seed, 2)), seed, world_size)


def assert_loaded(folder, info, split, order, seed, world_size, batch_size=10):
    """Each rank's batches against the order of the epoch, and each row once."""
    steps = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    seen = []
    for rank in range(world_size):
        reader = SplitReader(folder, info, split, rank, world_size)
        batches = list(reader.batches(reader.order(batch_size, seed, 2)))
        assert len(batches) == len(steps)
        for step, batch in zip(steps, batches, strict=True):
            mine = [row for lane, row in step if lane % world_size == rank]
            assert loaded(batch, info, len(mine)) == mine
            assert not batch.weights[len(mine) :].any()
            seen += mine
    assert sorted(seen) == sorted(row for _, row in order)


def loaded(batch, info, count):
    """The first rows of a batch; the others must have no ids."""
    bags = []
    for category in info.categories:
        bag = batch.sparse[category.name]
        values, offsets = bag.values().tolist(), bag.offsets().tolist()
        ids = [tuple(values[start:stop]) for start, stop in itertools.pairwise(offsets)]
        assert not any(ids[count:])
        bags.append(ids[:count] if category.multi_hot else [id_ for (id_,) in ids[:count]])
    ids = zip(*bags, strict=True) if count else []
    dense, labels, weights = batch.dense[:count].tolist(), batch.labels[:count].tolist(), batch.weights[:count].tolist()
    return [
        Row(int(label), tuple(numbers), tuple(each), weight)
        for label, numbers, each, weight in zip(labels, dense, ids, weights, strict=True)
    ]

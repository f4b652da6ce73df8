"""What tests of the formats share."""

import dataclasses

import pyarrow as pa
import pyarrow.parquet as pq

from dlrm_dist.data.options import PrepareOptions
from dlrm_dist.data.schema import read_info

"""Rows from anywhere: npy triples, Parquet of other origin, globs, S3."""


LANES, GROUP_ROWS = 4, 8


def options(form, **changes):
    return dataclasses.replace(PrepareOptions(form, shuffle=False, lanes=LANES, group_rows=GROUP_ROWS), **changes)


def read(folder, split="train"):
    return pa.concat_tables([pq.read_table(folder / part) for part in read_info(folder).splits[split].parts])


SCHEMA = """
label = "clicked"
dense = ["age", "price"]
weight = "w"
[categories]
user = {}
shop = { column = "shop_id", ids = "hash", rows = 5 }
tags = { min_count = 1 }
place = { ids = "keep", rows = 4 }
"""


def foreign(rows, start=0):
    number = range(start, start + rows)
    return pa.table(
        {
            "unused": pa.array(["x"] * rows),
            "clicked": pa.array([n % 3 == 0 for n in number]),
            "age": pa.array([None if n % 7 == 0 else n for n in number], pa.int16()),
            "price": pa.array([n / 8 for n in number], pa.float64()),
            "w": pa.array([1 + n % 2 for n in number], pa.float32()),
            "user": pa.array([None if n % 11 == 0 else f"user {n % 5}" for n in number]),
            "shop_id": pa.array([(1 << 60) + n for n in number], pa.int64()),
            "tags": pa.array([None if n % 5 == 0 else [f"t{n % 4}"] * (n % 3) for n in number], pa.list_(pa.string())),
            "place": pa.array([n % 4 for n in number], pa.uint8()),
        }
    )

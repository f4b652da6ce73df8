"""Starting from the weights of another run: rows of tables are matched by the value of their category."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from dlrm_dist.checkpoint.source import Sharded, Source, open_source, vocabulary_folder
from dlrm_dist.checkpoint.state import MODEL, SEGMENTS, State, other_ranks, size_of
from dlrm_dist.checkpoint.storage import Reader
from dlrm_dist.errors import UserError
from dlrm_dist.models.tables import ModelTable
from dlrm_dist.shard import ShardedTask, local_parts

RowMap = npt.NDArray[np.int64]
"""For each row of a new table the row of the old one with the same category value, -1 where there is none; int64."""


def load_weights(sharded: ShardedTask, tables: Sequence[ModelTable], path: Path, data: Path) -> list[str]:
    """Set the model's weights from a checkpoint, sharded or not; the optimizer starts anew. Collective.

    Tables whose vocabulary is as before are read shard by shard; others whole, one at a time.

    Args:
        sharded: the task.
        tables: its tables.
        path: a run, a checkpoint, or an unsharded one.
        data: the dataset's folder, whose vocabularies the rows belong to.

    Returns:
        What is to be said about it.

    Raises:
        UserError: a tensor is missing or does not fit; the categories of a shared table have other vocabularies.
    """
    source = open_source(path)
    state: State = {f"{MODEL}{key}": value for key, value in sharded.model.state_dict().items()}
    maps = {table.name: _table_map(source, data, table) for table in tables}
    problems: list[str | None] = [None] * dist.get_world_size()
    problem = _problem(source, state, maps) or _managed_problem(source, state, maps)
    dist.all_gather_object(problems, problem)  # a rank knows only the tables that lie on it
    for problem in problems:
        if problem:
            raise UserError(f"{path}: {problem}")
    whole = {key: value for key, value in state.items() if _rows_of(key, maps) is None}
    for key in state.keys() - whole.keys():
        _copy_rows(state[key], source.read(key), _rows_of(key, maps))
    if isinstance(source, Sharded):
        dcp.load(whole, storage_reader=Reader(source.path))
    else:
        for key, value in whole.items():
            _copy_rows(value, source.read(key), None)
    matched = {table: rows for table, rows in maps.items() if rows is not None}
    return [
        f"weights from {source.path}",
        *(
            f"{table}: {(rows >= 0).sum():,} of {len(rows):,} rows by their category's value"
            for table, rows in matched.items()
        ),
    ]


def _rows_of(key: str, maps: dict[str, RowMap | None]) -> RowMap | None:
    return maps.get(key.split(".")[-2])


def _problem(source: Source, state: State, maps: dict[str, RowMap | None]) -> str | None:
    """Why the weights cannot be used for this rank's tensors, if they cannot."""
    for key, value in state.items():
        if key not in source.sizes:
            return f"has no {key}; its model is another one, and its weights cannot be used"
        first = 0 if _rows_of(key, maps) is None else 1  # matched rows need not be equally many
        before, now = source.sizes[key], size_of(value)
        if list(before[first:]) != now[first:]:
            return (
                f"{key} has size {list(before)}, here {now}; without vocabularies rows have no value to be matched by: "
                "use the same model, and the same --hash-rows"
            )
    return None


def _table_map(source: Source, data: Path, table: ModelTable) -> RowMap | None:
    """None: row by row."""
    first, *others = (_row_map(source, data, feature) for feature in table.features)
    for other in others:
        if not _are_equal(first, other):
            raise UserError(
                f"{source.path}: {table.name} serves {', '.join(table.features)}, whose vocabularies have not changed "
                "alike since; its rows cannot be matched: use the same vocabulary for them (dlrm-dist prepare "
                "--vocabulary), or start without --model.init_from"
            )
    return first


def _are_equal(a: RowMap | None, b: RowMap | None) -> bool:
    return a is b if a is None or b is None else np.array_equal(a, b)


def _managed_problem(source: Source, state: State, maps: dict[str, RowMap | None]) -> str | None:
    """Why the ids of tables with managed collisions would not find their rows, if they would not."""
    for key, value in state.items():
        if key.endswith(SEGMENTS):
            table = key.split(".")[-2]
            if maps[table] is not None:
                return (
                    f"{table} has managed collisions of ids of another vocabulary; use raw ids, or the same vocabulary"
                )
            problem = other_ranks(key, source.read(key), value)
            if problem:
                return f"{problem}, or start without model.init_from"
    return None


def _row_map(source: Source, data: Path, column: str) -> RowMap | None:
    """None: row by row."""
    before, now = vocabulary_folder(source), data / "vocabulary"
    old = before / f"{column}.parquet" if before else None
    new = now / f"{column}.parquet"
    if old is None or not old.is_file() or not new.is_file():
        return None
    old_values, new_values = _values(old), _values(new)
    if old_values.equals(new_values):
        return None
    found = pc.index_in(new_values, value_set=old_values)
    rows = pc.fill_null(pc.add(found, pa.scalar(1, pa.int32())), -1).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], rows]).astype(np.int64)  # id 0: what is rare or unseen


def _values(path: Path) -> pa.Array:
    return pq.read_table(path, columns=["value"])["value"].combine_chunks().cast(pa.uint64())


def _copy_rows(value: torch.Tensor, old: torch.Tensor, rows: RowMap | None) -> None:
    """Fill this rank's parts of a tensor from the whole old one."""
    with torch.no_grad():
        if rows is None and not hasattr(value, "local_shards"):
            value.copy_(old)
            return
        for (row, column), local in local_parts(value):
            height = local.shape[0]
            if rows is None:
                places = zip((row, column), local.shape, strict=False)  # a map of ids has no columns
                local.copy_(old[tuple(slice(begin, begin + size) for begin, size in places)])
                continue
            columns = slice(column, column + local.shape[1])
            wanted = torch.from_numpy(rows[row : row + height])
            there = wanted >= 0
            local[: len(wanted)][there.to(local.device)] = old[wanted[there], columns].to(local)

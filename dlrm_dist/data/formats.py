"""Files to sources, for each format."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import NamedTuple

from dlrm_dist.data import npy, parquet, slot, text
from dlrm_dist.data.files import File
from dlrm_dist.data.kaggle import CATEGORIES, DENSE, Kaggle
from dlrm_dist.data.options import PrepareOptions
from dlrm_dist.data.sources import Column, Columns, Source, hash_rows_of, ids_of, rows_of


class Opened(NamedTuple):
    """Sources by split, and their columns."""

    sources: Mapping[str, Sequence[Source]]
    columns: Columns


def open_sources(
    files: dict[str, list[File]],
    options: PrepareOptions,
    schema: parquet.ParquetSchema | None,
    pool: Executor,
    labelled: bool = True,
) -> Opened:
    """The sources in the files of each split, whose rows are counted here; `schema` is for format parquet.

    Rows that are not `labelled` are read in Criteo's formats.

    Raises:
        UserError: a file cannot be read, is empty or does not belong to the format.
    """
    if options.format == "npy":
        triples = {name: npy.triples(group, options.on_bad_row) for name, group in files.items()}
        every = [source for group in triples.values() for source in group]
        return Opened(triples, npy.columns_of(every, options.ids, options.hash_rows, options.min_count, options.raw))
    if options.format == "parquet":
        return _open_parquet(files, options, schema)
    form = slot.Slot() if options.format == "slot" else Kaggle(options.dense, options.bins, labelled)
    sources = {
        name: [
            text.TextSource(file, form, options.on_bad_row, counted)
            for file, counted in zip(group, pool.map(text.count, group), strict=True)
        ]
        for name, group in files.items()
    }
    if isinstance(form, slot.Slot):
        return Opened(sources, Columns(DENSE, tuple(Column(name, "keep", slot.SLOT_ROWS) for name in CATEGORIES)))
    how = ids_of(form.categories, options.ids, options.raw)
    sizes = hash_rows_of(form.categories, options.hash_rows)
    columns = (
        Column(name, ids, rows_of(ids, size), options.min_count)
        for (name, ids), size in zip(how.items(), sizes, strict=True)
    )
    return Opened(sources, Columns(DENSE, tuple(columns)))


def _open_parquet(
    files: dict[str, list[File]], options: PrepareOptions, schema: parquet.ParquetSchema | None
) -> Opened:
    assert schema is not None and options.dense != "minmax"  # see `options.check`
    assert isinstance(options.hash_rows, int)
    dense = options.dense
    sources = {
        name: [parquet.ParquetSource(file, schema, dense, options.on_bad_row) for file in group]
        for name, group in files.items()
    }
    every = [source for group in sources.values() for source in group]
    columns = parquet.columns_of(every, schema, options.ids, options.hash_rows, options.min_count)
    return Opened(sources, columns)

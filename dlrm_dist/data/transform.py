"""A dataset's transform, as its description records it: raw rows become what it would have made of them."""

from pathlib import Path
from typing import get_args

import pyarrow as pa

from dlrm_dist.data.options import Format, PrepareOptions
from dlrm_dist.data.parquet import MISSING_RAW, ParquetSchema
from dlrm_dist.data.schema import Category, DatasetInfo
from dlrm_dist.data.sources import Column
from dlrm_dist.data.vocabulary import Encoder, Vocabulary, encoded, file_of, hash_encoder, id_type
from dlrm_dist.errors import UserError

KEYS = ("format", "ids", "raw", "dense", "bins", "missing_value", "schema")
"""All that `Transform` reads of what a dataset records of its transform; the rest tells where its rows came from."""
_WHOLE = 1 << 62
"""Bytes for a vocabulary: all of its values are looked up at once."""


class Transform:
    """How raw rows become rows of a dataset; vocabularies are held in memory, 11 to 32 bytes a value."""

    def __init__(self, folder: Path, info: DatasetInfo) -> None:
        """Take what a dataset, or a run trained on it, has: its folder with the vocabularies, and the description.

        Raises:
            UserError: the dataset was made without raw rows; a vocabulary is missing or damaged.
        """
        made = info.transform
        if made.get("format") not in get_args(Format):
            raise UserError(
                f"{folder}: its dataset was made without raw rows (format {made.get('format')}), so that there is no "
                "way from raw values to its ids; allowed: rows of a prepared dataset; give those"
            )
        self.info = info
        self.schema = ParquetSchema.model_validate(made["schema"]) if "schema" in made else None
        self.options = PrepareOptions(
            format=made["format"],
            ids="keep" if made["format"] == "slot" else made["ids"],
            raw=tuple(made.get("raw", ())),
            dense=made["dense"],
            bins=made.get("bins", False),
        )
        self.columns = tuple(map(self._column, info.categories))
        self._encoders = {each.name: _encoder(folder, each) for each in self.columns}

    def _column(self, category: Category) -> Column:
        """How a category's raw values become ids."""
        own = self.schema.categories[category.name].ids if self.schema else None
        ids = "raw" if category.unbounded else own or self.options.ids
        missing = self.info.transform.get("missing_value", 0)
        if category.unbounded and self.schema:
            missing = MISSING_RAW
        return Column(category.name, ids, category.rows, 1, missing, category.multi_hot)

    def prepared(self, parsed: pa.Table) -> pa.Table:
        """The rows of the dataset that parsed rows become (see `sources.Parsed`): dense columns and ids."""
        columns = {name: parsed[name] for name in self.info.dense}
        for column in self.columns:
            columns[column.name] = encoded(_whole(parsed[column.name]), self._encoders[column.name])
        return pa.table(columns)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _encoder(folder: Path, column: Column) -> Encoder:
    if column.ids in ("hash", "raw"):
        return hash_encoder(column.rows, column.missing)
    if column.ids == "keep":
        return lambda ids: ids.cast(id_type(column.rows))
    path = file_of(folder, column.name)
    try:
        vocabulary = Vocabulary(path)
        encode = next(vocabulary.encoders(_WHOLE))
    except (OSError, ValueError, KeyError) as error:  # pyarrow's own errors derive from the first two
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read as a vocabulary: {reason}; copy the folder again, whole") from None
    if vocabulary.rows != column.rows:
        raise UserError(
            f"{path}: has {vocabulary.rows} ids, dataset.json promises {column.rows}; copy the folder again, whole"
        )
    return encode

"""Ids of tables with managed collisions as rows, by the map that training has left: the same rows in one process.

A rank holds the ids of its part of the table; an id without a row of its own shares the last row of the part that it
belongs to. So the map of the whole table is all ranks' ids in one, and the shared row of each rank.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dlrm_dist.checkpoint.source import Source
from dlrm_dist.checkpoint.state import SEGMENTS
from dlrm_dist.data.schema import RAW_IDS
from dlrm_dist.models.managed import mixed
from dlrm_dist.sections import ModelSection

FILE = "managed.safetensors"
_IDS, _ROWS = "._mch_sorted_raw_ids", "._mch_remapped_ids_mapping"


class IdMap(NamedTuple):
    """Which row of a table an id has.

    Attributes:
        ids: those with a row of their own, mixed (`models.managed.mixed`), int64 [n], rising.
        rows: of these ids, int64 [n].
        shared: the row of all others, int64 [ranks], by the rank that such an id belongs to.
    """

    ids: Tensor
    rows: Tensor
    shared: Tensor

    def rows_of(self, ids: Tensor) -> Tensor:
        """The rows of ids, int32 or int64 [m], in their type."""
        wanted = mixed(ids)
        rows = self.shared[wanted // -(-RAW_IDS // len(self.shared))]  # as TorchRec shares ids out among ranks
        if len(self.ids):
            place = torch.searchsorted(self.ids, wanted).clamp_max(len(self.ids) - 1)
            rows = torch.where(self.ids[place] == wanted, self.rows[place], rows)
        return rows.to(ids.dtype)


IdMaps = Mapping[str, IdMap]
"""By category; those whose ids are rows already are not there."""


def read_maps(model: ModelSection, source: Source) -> IdMaps:
    """The maps in a checkpoint of a model."""
    return {name: _read(source, f".t_{name}") for name in model.managed_collisions}


def _read(source: Source, table: str) -> IdMap:
    wanted = (_IDS, _ROWS, SEGMENTS)
    keys = {end: key for end in wanted for key in source.sizes if key.endswith(table + end)}
    ids, rows, segments = (source.read(keys[end]) for end in wanted)
    used = torch.nonzero(ids != RAW_IDS).flatten()
    rising = used[ids[used].argsort()]
    bounds = segments[segments >= 0]
    return IdMap(ids[rising], rows[rising], bounds[1:] - 1)


def write_maps(maps: IdMaps, folder: Path) -> None:
    """Write the maps, if there are any, into an export's folder."""
    tensors = {f"{name}.{key}": each for name, map_ in maps.items() for key, each in map_._asdict().items()}
    if tensors:
        save_file(tensors, folder / FILE)


def load_maps(folder: Path) -> IdMaps:
    """What `write_maps` wrote."""
    if not (folder / FILE).is_file():
        return {}
    found = load_file(folder / FILE)
    names = dict.fromkeys(key.rpartition(".")[0] for key in found)
    return {name: IdMap(*(found[f"{name}.{field}"] for field in IdMap._fields)) for name in names}

"""A trained run's weights in one process: the network at once, the tables one after another."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dlrm_dist import progress
from dlrm_dist.checkpoint.saved_run import SavedRun
from dlrm_dist.checkpoint.source import Sharded, Source, open_source
from dlrm_dist.checkpoint.state import MODEL
from dlrm_dist.errors import UserError
from dlrm_dist.models.build import build_model
from dlrm_dist.models.click_model import ClickModel
from dlrm_dist.models.shape import dataset_shape

_TASK = f"{MODEL}model."
"""What training puts before the names of a model's tensors."""
_TABLES = "embedding_bags."


class Table(NamedTuple):
    """A table's rows, float [rows, columns]."""

    name: str
    weight: Tensor


def open_weights(saved: SavedRun) -> Sharded:
    """The run's chosen checkpoint, every file of which is checked.

    Raises:
        UserError: it is damaged.
    """
    source = open_source(saved.checkpoint)
    assert isinstance(source, Sharded)
    return source


def build_unsharded(saved: SavedRun, source: Source) -> ClickModel:
    """The run's model on CPU with its trained network; its tables are on the meta device.

    It takes rows for ids in tables with managed collisions too: see `managed.IdMap`.

    Raises:
        UserError: the checkpoint is of another model.
    """
    config = saved.config
    shape = dataset_shape(saved.info, config.model, config.data.expand_multi_hot)
    section = config.model.model_copy(update={"managed_collisions": ()})
    model = build_model(section, shape.num_dense, shape.named_rows, config.train.seed, torch.device("cpu"))
    with torch.no_grad():
        for name, value in model.state_dict().items():
            key = _key(source, name)
            _check_size(source, key, value)
            if not value.is_meta:
                value.copy_(source.read(key))
    model.eval().requires_grad_(False)
    return model


def _key(source: Source, name: str) -> str:
    """A tensor's name in the checkpoint, where managed tables lie in a collection of their own."""
    _, is_table, table = name.partition(_TABLES)
    ending = f".{_TABLES}{table}"
    found = (key for key in source.sizes if key.startswith(MODEL) and key.endswith(ending)) if is_table else iter(())
    return next(found, _TASK + name)


def _check_size(source: Source, key: str, value: Tensor) -> None:
    found = source.sizes.get(key)
    if found != tuple(value.shape):
        what = "is missing" if found is None else f"has size {list(found)}"
        raise UserError(
            f"{source.path}: {key} {what}, the run's config wants {list(value.shape)}; use the run it is of"
        )


def tables(names: Sequence[str], source: Source) -> Iterator[Table]:
    """Tables of a run, each read whole when it is asked for."""
    for name in progress.each(names, "tables", "tables"):
        yield Table(name, source.read(_key(source, f"{_TABLES}{name}.weight")))

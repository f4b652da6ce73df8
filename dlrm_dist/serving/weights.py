"""A trained run's weights in one process: the network at once, the tables one after another."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dlrm_dist.checkpoint.saved_run import SavedRun
from dlrm_dist.checkpoint.source import Sharded, Source, open_source
from dlrm_dist.checkpoint.state import MODEL
from dlrm_dist.errors import UserError
from dlrm_dist.models.build import build_model
from dlrm_dist.models.shape import dataset_shape
from dlrm_dist.serving.bags import collections_of

_TASK = f"{MODEL}model."
"""What training puts before the names of a model's tensors."""


class Table(NamedTuple):
    """A table's rows, float [rows, columns], and the collection it belongs to."""

    collection: str
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


def build_unsharded(saved: SavedRun, source: Source) -> nn.Module:
    """The run's model on CPU with its trained network; its tables are on the meta device.

    Raises:
        UserError: the checkpoint is of another model.
    """
    config = saved.config
    shape = dataset_shape(saved.info, config.model, config.data.expand_multi_hot)
    features = [(feature.name, feature.rows) for feature in shape.features]
    model: nn.Module = build_model(config.model, shape.num_dense, features, config.train.seed, torch.device("cpu"))
    collections_of(model)  # refuses what cannot be scored, before its tensors are looked for
    with torch.no_grad():
        for name, value in model.state_dict().items():
            _check_size(source, name, value)
            if not value.is_meta:
                value.copy_(source.read(_TASK + name))
    return model.eval().requires_grad_(False)


def _check_size(source: Source, name: str, value: Tensor) -> None:
    found = source.sizes.get(_TASK + name)
    if found != tuple(value.shape):
        what = "is missing" if found is None else f"has size {list(found)}"
        raise UserError(
            f"{source.path}: {name} {what}, the run's config wants {list(value.shape)}; use the run it is of"
        )


def tables(model: nn.Module, source: Source) -> Iterator[Table]:
    """The tables of a model whose collections are still there, each read whole when it is asked for."""
    names = [
        (path, table.name) for path, each in collections_of(model).items() for table in each.embedding_bag_configs()
    ]
    for path, name in tqdm(names, desc="tables", unit="table", disable=None, leave=False):
        yield Table(path, name, source.read(f"{_TASK}{path}.embedding_bags.{name}.weight"))

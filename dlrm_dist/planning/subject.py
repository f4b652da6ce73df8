"""What is planned: the model on the meta device, its tables, and what the rest of it costs."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchrec.distributed.types import get_tensor_size_bytes
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedTensor

from dlrm_dist.models.batch_norm import BatchNorm
from dlrm_dist.models.build import build_model
from dlrm_dist.models.click_model import ClickModel
from dlrm_dist.models.shape import ModelShape
from dlrm_dist.models.task import ClickTask
from dlrm_dist.optim import Optimizers
from dlrm_dist.planning.plan_file import Dense, Table
from dlrm_dist.planning.tables import model_tables
from dlrm_dist.runtime import quiet_libraries
from dlrm_dist.sections import ModelSection, OptimizerSection

_FLOP_BATCH = 64


@dataclass(frozen=True)
class Subject:
    """A model without memory, and its numbers."""

    task: ClickTask
    tables: tuple[Table, ...]
    dense: Dense
    optimizer: str


def make_subject(model: ModelSection, optimizer: OptimizerSection, shape: ModelShape) -> Subject:
    """The model of a config, on the meta device; nothing is allocated."""
    quiet_libraries()
    task = ClickTask(build_model(model, shape.num_dense, shape.named_rows, seed=0, device=torch.device("meta")))
    optimizer_class, _ = Optimizers(optimizer, 0.0).fused()
    for module in _collections(task):
        for bag in module.embedding_bags.values():
            bag.weight._optimizer_classes = [optimizer_class]  # where the planner looks for the state's size
    tables = model_tables(model, optimizer, shape)
    configs = [config for module in _collections(task) for config in module.embedding_bag_configs()]
    found = [(config.name, config.num_embeddings, config.embedding_dim) for config in configs]
    if sorted(found) != sorted((table.name, table.rows, table.dim) for table in tables):
        raise AssertionError(f"the model has other tables than its description: {found}")
    return Subject(task, tables, _dense(model.name, task, shape), optimizer.sparse)


def _collections(task: nn.Module) -> list[EmbeddingBagCollection]:
    return [module for module in task.modules() if isinstance(module, EmbeddingBagCollection)]


def _dense(name: str, task: ClickTask, shape: ModelShape) -> Dense:
    """Counts the arithmetic of the layers around the tables by running them on the meta device."""
    network = task.model
    assert isinstance(network, ClickModel)
    tables = [config for module in _collections(task) for config in module.embedding_bag_configs()]
    inputs = torch.empty(_FLOP_BATCH, shape.num_dense, device="meta")
    dims = [config.embedding_dim for config in tables for _ in config.feature_names]
    names = [name for config in tables for name in config.feature_names]
    embedded = KeyedTensor(names, dims, torch.empty(_FLOP_BATCH, sum(dims), device="meta", requires_grad=True))
    with FlopCounterMode(display=False) as forward:
        logits = network.logits(inputs, embedded)
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    network.zero_grad()
    parts = network.dense_parts()
    norms = sum(isinstance(module, BatchNorm) for module in network.modules())
    return Dense(
        name=name,
        parameter_bytes=sum(get_tensor_size_bytes(p) for part in parts for p in part.parameters()),
        collectives=2 * norms,  # its sums over ranks, forward and backward
        forward_flop_per_sample=forward.get_total_flops() / _FLOP_BATCH,
        backward_flop_per_sample=backward.get_total_flops() / _FLOP_BATCH,
        # dense values, label and weight in fp32; ids in int64 and lengths in int32
        input_bytes_per_sample=4 * (shape.num_dense + 2) + sum(8 * each.ids_per_sample + 4 for each in shape.features),
    )

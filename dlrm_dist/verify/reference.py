"""Training without sharding: one process, embedding bags of torch.nn in float64, optimizers written out."""

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedTensor

from dlrm_dist.models.build import build_model
from dlrm_dist.models.click_model import ClickModel
from dlrm_dist.models.tables import ModelTable
from dlrm_dist.sections import OptimizerSection
from dlrm_dist.verify.problem import STEPS, Problem


class Bags(nn.Module):
    """Plain embedding bags in the place of an EmbeddingBagCollection."""

    def __init__(self, tables: tuple[ModelTable, ...], weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.table_of = {name: table.name for table in tables for name in table.features}
        self.weights = nn.ParameterDict({table.name: weights[weight_key(table.name)].double() for table in tables})

    def forward(self, ids: dict[str, Tensor], offsets: dict[str, Tensor]) -> KeyedTensor:
        """Sums of each feature's bags."""
        weights = [self.weights[self.table_of[name]] for name in ids]
        sums = [
            nn.functional.embedding_bag(ids[name], weight, offsets[name], mode="sum")
            for name, weight in zip(ids, weights, strict=True)
        ]
        return KeyedTensor.from_tensor_list(list(ids), sums)


def weight_key(table: str) -> str:
    """The name of a table's weights in the sharded model."""
    return f"model.embeddings.embedding_bags.{table}.weight"


def train(
    problem: Problem,
    initial: dict[str, Tensor],
    optimizer: OptimizerSection,
    rates: tuple[float, float],
    steps: int = STEPS,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Train from `initial` weights (by their names in the sharded model) over whole batches.

    Args:
        problem: model and batches.
        initial: all weights, of the tables and of the layers around them.
        optimizer: of both.
        rates: learning rates of tables and layers.
        steps: how many.

    Returns:
        The weights and the running statistics after the last step by their names, and each table's second moments.
    """
    network = build_model(problem.model, problem.shape.num_dense, problem.shape.named_rows, 0, torch.device("cpu"))
    bags, layers = Bags(problem.tables, initial), nn.ModuleList(network.dense_parts()).double()
    values = {
        key: value
        for key, value in network.state_dict(keep_vars=True).items()
        if not key.startswith("embeddings.") and value.is_floating_point()
    }
    with torch.no_grad():
        for key, value in values.items():
            value.copy_(initial[f"model.{key}"])
    moments = {name: _no_moment(optimizer.sparse, weight) for name, weight in bags.weights.items()}
    others = [torch.zeros_like(parameter) for parameter in layers.parameters()]
    for step in range(steps):
        _loss(problem, network, bags, step).backward()
        with torch.no_grad():
            for name, weight in bags.weights.items():
                _update(weight, optimizer.sparse, rates[0], optimizer.eps, moments[name])
            for parameter, moment in zip(layers.parameters(), others, strict=True):
                _update(parameter, optimizer.dense, rates[1], optimizer.eps, moment)
    final = {weight_key(name): weight.detach() for name, weight in bags.weights.items()}
    return final | {f"model.{key}": value.detach() for key, value in values.items()}, moments


def _loss(problem: Problem, network: ClickModel, bags: Bags, step: int) -> Tensor:
    batch = problem.batch(step, 0, 1)
    jagged = batch.sparse.to_dict()
    ids = {name: values.values() for name, values in jagged.items()}
    offsets = {name: values.offsets()[:-1].long() for name, values in jagged.items()}
    logits = network.logits(batch.dense.double(), bags(ids, offsets))
    return nn.functional.binary_cross_entropy_with_logits(logits, batch.labels.double())


def _no_moment(kind: str, weight: Tensor) -> Tensor:
    return torch.zeros(len(weight), dtype=weight.dtype) if kind == "rowwise_adagrad" else torch.zeros_like(weight)


def _update(parameter: Tensor, kind: str, rate: float, eps: float, moment: Tensor) -> None:
    """SGD; Adagrad (Duchi et al. 2011); row-wise Adagrad: one second moment a row, the mean over its columns."""
    gradient = parameter.grad
    assert gradient is not None
    if kind == "sgd":
        parameter -= rate * gradient
    elif kind == "adagrad":
        moment += gradient**2
        parameter -= rate * gradient / (moment.sqrt() + eps)
    else:
        moment += (gradient**2).mean(1)
        parameter -= rate * gradient / (moment.sqrt() + eps).unsqueeze(1)
    parameter.grad = None

"""Training without sharding: one process, embedding bags of torch.nn in float64, optimizers written out."""

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedTensor

from dlrm_dist.config import OptimizerSection
from dlrm_dist.models.build import build_model
from dlrm_dist.models.dlrm import DLRM
from dlrm_dist.verify.problem import STEPS, Problem


class Bags(nn.Module):
    """Plain embedding bags in the place of an EmbeddingBagCollection."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.weights = nn.ParameterDict({name: weight.double() for name, weight in weights.items()})

    def forward(self, ids: dict[str, Tensor], offsets: dict[str, Tensor]) -> KeyedTensor:
        """Sums of each feature's bags."""
        sums = [nn.functional.embedding_bag(ids[name], self.weights[name], offsets[name], mode="sum") for name in ids]
        return KeyedTensor.from_tensor_list(list(ids), sums)


def train(
    problem: Problem, initial: dict[str, Tensor], optimizer: OptimizerSection, rates: tuple[float, float]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Train from `initial` weights (by their names in the sharded model) over whole batches.

    Args:
        problem: model and batches.
        initial: all weights, of the tables and of the layers around them.
        optimizer: of both.
        rates: learning rates of tables and layers.

    Returns:
        The weights after the last step by their names, and each table's second moments.
    """
    features = [(feature.name, feature.rows) for feature in problem.shape.features]
    network = build_model(problem.model, problem.shape.num_dense, features, 0, torch.device("cpu"))
    prefix = "model.embeddings.embedding_bags."
    bags = Bags({name: initial[f"{prefix}t_{name}.weight"] for name, _ in features})
    layers = {key: value for key, value in network.named_parameters() if not key.startswith("embeddings.")}
    with torch.no_grad():
        for key, parameter in layers.items():
            parameter.data = initial[f"model.{key}"].double().clone()
    moments = {name: _no_moment(optimizer.sparse, weight) for name, weight in bags.weights.items()}
    others = {key: torch.zeros_like(parameter) for key, parameter in layers.items()}
    for step in range(STEPS):
        _loss(problem, network, bags, step).backward()
        with torch.no_grad():
            for name, weight in bags.weights.items():
                _update(weight, optimizer.sparse, rates[0], optimizer.eps, moments[name])
            for key, parameter in layers.items():
                _update(parameter, optimizer.dense, rates[1], optimizer.eps, others[key])
    final = {f"{prefix}t_{name}.weight": weight.detach() for name, weight in bags.weights.items()}
    return final | {f"model.{key}": parameter.detach() for key, parameter in layers.items()}, moments


def _loss(problem: Problem, network: DLRM, bags: Bags, step: int) -> Tensor:
    batch = problem.batch(step, 0, 1)
    jagged = batch.sparse.to_dict()
    ids = {name: values.values() for name, values in jagged.items()}
    offsets = {name: values.offsets()[:-1].long() for name, values in jagged.items()}
    embedded = bags(ids, offsets)
    logits = network.top_mlp(network.interaction(network.bottom_mlp(batch.dense.double()), embedded)).squeeze(1)
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

"""DLRM training without TorchRec: `nn.EmbeddingBag`, one process, float64, optimizers from their formulas."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dlrm_dist.data.batch import ClickBatch


class ReferenceDLRM(nn.Module):
    """The same network, built anew: a list of bags, a loop over pairs."""

    def __init__(self, weights: dict[str, Tensor], features: list[str]) -> None:
        super().__init__()
        self.features = features
        self.bags = nn.ParameterDict({name: weights[table_key(name)].double() for name in features})
        self.mlps = nn.ParameterDict(
            {key.replace(".", "/"): value.double() for key, value in weights.items() if "_mlp." in key}
        )

    def mlp(self, name: str, x: Tensor, last_relu: bool) -> Tensor:
        layers = sorted({int(key.split("/")[2]) for key in self.mlps if key.split("/")[1] == name})
        for layer in layers:
            x = x @ self.mlps[f"model/{name}/{layer}/weight"].T + self.mlps[f"model/{name}/{layer}/bias"]
            x = x.relu() if last_relu or layer != layers[-1] else x
        return x

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        bottom = self.mlp("bottom_mlp", dense.double(), last_relu=True)
        vectors = [bottom] + [
            nn.functional.embedding_bag(ids[:, i : i + 1], self.bags[name], mode="sum")
            for i, name in enumerate(self.features)
        ]
        pairs = [(vectors[i] * vectors[j]).sum(1) for i in range(len(vectors)) for j in range(i + 1, len(vectors))]
        return self.mlp("top_mlp", torch.cat([bottom, torch.stack(pairs, 1)], 1), last_relu=False).squeeze(1)


def table_key(feature: str) -> str:
    return f"model.embeddings.embedding_bags.t_{feature}.weight"


def train(
    model: ReferenceDLRM,
    batches: Iterable[ClickBatch],
    sparse: tuple[str, float],
    dense: tuple[str, float],
    eps: float,
    factors: list[float],
) -> dict[str, Tensor]:
    """Train over whole global batches with (optimizer, learning rate); returns each table's second moment."""
    state = {id(p): torch.zeros_like(p) for p in model.mlps.values()}
    moments = {
        name: torch.zeros(len(bag), dtype=torch.float64) if sparse[0] == "rowwise_adagrad" else torch.zeros_like(bag)
        for name, bag in model.bags.items()
    }
    for batch, factor in zip(batches, factors, strict=True):
        count = int(batch.weights.sum())
        ids = batch.sparse.values().view(len(model.features), -1).T.long()
        logits = model(batch.dense[:count], ids)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, batch.labels[:count].double())
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for name, bag in model.bags.items():
                update(bag, sparse[0], sparse[1] * factor, eps, moments[name])
            for parameter in model.mlps.values():
                update(parameter, dense[0], dense[1] * factor, eps, state[id(parameter)])
    return {name: moment.detach() for name, moment in moments.items()}


def update(parameter: Tensor, kind: str, rate: float, eps: float, moment: Tensor) -> None:
    """SGD; Adagrad (Duchi et al. 2011); row-wise Adagrad: one second moment a row, the mean over its columns."""
    grad = parameter.grad
    if kind == "sgd":
        parameter -= rate * grad
    elif kind == "adagrad":
        moment += grad**2
        parameter -= rate * grad / (moment.sqrt() + eps)
    elif kind == "rowwise_adagrad":
        moment += (grad**2).mean(1)
        parameter -= rate * grad / (moment.sqrt() + eps).unsqueeze(1)
    else:
        raise ValueError(kind)

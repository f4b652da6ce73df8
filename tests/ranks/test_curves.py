"""The loss of each of 200 steps of sharded DLRM training, beside a DLRM of `torch.nn` and `torch.optim` alone."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from dlrm_dist.models.shape import Feature, ModelShape
from dlrm_dist.sections import ModelSection
from dlrm_dist.verify.problem import Problem
from dlrm_dist.verify.ranks import run_ranks

pytestmark = pytest.mark.usefixtures("one_thread")

PROGRAM = Path(__file__).with_name("curve_program.py")
STEPS = 200
MODEL = ModelSection(embedding_dim=8, bottom_mlp=(16, 8), top_mlp=(16, 1))
FEATURES = (("A", 300), ("B", 60), ("C", 150))
PROBLEM = Problem(MODEL, ModelShape(4, tuple(Feature(*each) for each in FEATURES)))
EPS = 1e-6
RATES = {"sgd": (10.0, 0.2), "adagrad": (0.05, 0.02), "rowwise_adagrad": (0.05, 0.02), "adam": (0.003, 0.003)}
"""Of tables and layers."""
TOLERANCE = {"sgd": 1e-5, "adagrad": 1e-5, "rowwise_adagrad": 1e-5, "adam": 1e-5}
"""SGD: absolute, both sides in fp32. The others: relative to a float64 curve, for they divide a gradient near zero, and
with it its rounding, by its own size."""


class Plain(nn.Module):
    """The paper's network; nothing of the package."""

    def __init__(self, weights):
        super().__init__()
        self.bags = nn.ModuleList(
            nn.EmbeddingBag.from_pretrained(
                weights[f"model.embeddings.embedding_bags.t_{name}.weight"].clone(), freeze=False, mode="sum"
            )
            for name, _ in FEATURES
        )
        self.bottom = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(8 + 6, 16), nn.ReLU(), nn.Linear(16, 1))
        for mine, name in ((self.bottom, "bottom_mlp"), (self.top, "top_mlp")):
            mine.load_state_dict({key: weights[f"model.{name}.{key}"] for key in mine.state_dict()})

    def forward(self, dense, sparse):
        jagged = [sparse[name] for name, _ in FEATURES]
        embedded = [bag(each.values(), each.offsets()[:-1]) for bag, each in zip(self.bags, jagged, strict=True)]
        vectors = torch.stack([self.bottom(dense), *embedded], 1)
        rows, columns = torch.triu_indices(4, 4, 1)
        products = (vectors @ vectors.transpose(1, 2))[:, rows, columns]
        return self.top(torch.cat([vectors[:, 0], products], 1))[:, 0]


def plain_losses(weights, kind, dtype, slower=1.0):
    network = Plain(weights).to(dtype)
    tables, layers = network.bags.parameters(), [*network.bottom.parameters(), *network.top.parameters()]
    table_rate, rate = RATES[kind][0] * slower, RATES[kind][1]
    if kind == "sgd":
        optimizers = [torch.optim.SGD(tables, table_rate), torch.optim.SGD(layers, rate)]
    else:
        adaptive = torch.optim.Adam if kind == "adam" else torch.optim.Adagrad
        of_tables = RowWiseAdagrad if kind == "rowwise_adagrad" else adaptive
        optimizers = [of_tables(tables, table_rate, eps=EPS), adaptive(layers, rate, eps=EPS)]
    losses = []
    for step in range(STEPS):
        batch = PROBLEM.batch(step, 0, 1)
        logits = network(batch.dense.to(dtype), batch.sparse.to_dict())
        loss = nn.functional.binary_cross_entropy_with_logits(logits, batch.labels.to(dtype))
        loss.backward()
        for each in optimizers:
            each.step()
            each.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curves")
    jobs = [
        {
            "name": kind,
            "model": MODEL.model_dump(),
            "optimizer": {"sparse": kind, "dense": "adagrad" if kind == "rowwise_adagrad" else kind, "eps": EPS},
            "num_dense": 4,
            "features": FEATURES,
            "types": ["data_parallel"] * 3 if kind == "adam" else ["table_wise", "row_wise", "data_parallel"],
            "comm_precision": "fp32",
            "rates": rates,
        }
        for kind, rates in RATES.items()
    ]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    run_ranks(PROGRAM, 2, str(folder / "jobs.json"), str(folder / "out.pt"), str(STEPS), timeout=100)
    return torch.load(folder / "out.pt", weights_only=True)


@pytest.mark.parametrize("kind", RATES)
def test_the_loss_of_each_step_is_that_of_plain_pytorch(kind, sharded):
    losses, initial = sharded[kind]["losses"], sharded[kind]["initial"]
    dtype = torch.float32 if kind == "sgd" else torch.float64
    expected = plain_losses(initial, kind, dtype)
    closeness = {"rtol": 0, "atol": TOLERANCE[kind]} if kind == "sgd" else {"rtol": TOLERANCE[kind], "atol": 0}
    torch.testing.assert_close(losses.to(dtype), expected, **closeness)
    assert (expected[0] - expected[-20:].mean()).abs() > 0.01  # it is a curve
    other = plain_losses(initial, kind, dtype, slower=0.97)
    assert (losses - other).abs().max() > 10 * TOLERANCE[kind]

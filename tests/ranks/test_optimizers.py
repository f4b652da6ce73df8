"""Every optimizer with every weight decay, clipping and micro-batches, sharded, against formulas in float64."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from dlrm_dist.verify.ranks import run_ranks
from tests.ranks.optimizers_program import PROBLEM, STEPS
from tests.ranks.reference import ReferenceDLRM, table_key

PROGRAM = Path(__file__).with_name("optimizers_program.py")
EPS = 1e-4
"""With 1e-8 the rounding of gradients near zero alone moves weights by more than the tolerance."""
TOLERANCE = 1e-5
SHARDED, REPLICATED = ["table_wise", "row_wise"], ["data_parallel"]
RATES = {"sgd": (10.0, 1.0)}
"""Of tables and MLPs, where .05 would hardly move them in the steps of the test."""


def case(sparse, dense="sgd", types=SHARDED, micro_batches=1, **optimizer):
    rates = RATES.get(sparse, (0.05, 0.05))[0], RATES.get(dense, (0.05, 0.05))[1]
    given = {"sparse": sparse, "dense": dense, "eps": EPS, **optimizer}
    given |= {"sparse_learning_rate": rates[0], "dense_learning_rate": rates[1]}
    return {"optimizer": given, "types": types, "micro_batches": micro_batches}


CASES = {
    "sgd, dense adam": case("sgd", "adam"),
    "adagrad, dense sgd decays": case("adagrad", "sgd", dense_weight_decay=0.1),
    "rowwise_adagrad": case("rowwise_adagrad", "adagrad", dense_weight_decay=0.1),
    "rowwise_adagrad, rows decay": case("rowwise_adagrad", "adam", sparse_weight_decay=0.1, dense_weight_decay=0.1),
    "replicated sgd decays": case("sgd", types=REPLICATED, table_weight_decay=0.02),
    "replicated adagrad decays": case("adagrad", types=REPLICATED, table_weight_decay=0.1),
    "replicated rowwise_adagrad decays": case("rowwise_adagrad", types=REPLICATED, table_weight_decay=0.1),
    "replicated adam": case("adam", "adam", REPLICATED),
    "replicated adam decays": case("adam", "adam", REPLICATED, table_weight_decay=0.1, clip_norm=10.0),
    "clipped": case("sgd", "sgd", clip_norm=0.07),
    "replicated, clipped": case("sgd", "sgd", REPLICATED, clip_norm=0.05),
    "micro-batches": case("rowwise_adagrad", "adagrad", micro_batches=5),
    "replicated micro-batches": case("adam", "adam", REPLICATED, 5, table_weight_decay=0.1, clip_norm=0.05),
}


@pytest.fixture(scope="module", params=[1, 2], ids=["1rank", "2ranks"])
def runs(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("optimizers")
    (folder / "cases.json").write_text(json.dumps(CASES))
    run_ranks(PROGRAM, request.param, str(folder / "cases.json"), str(folder / "out.pt"), timeout=100)
    return torch.load(folder / "out.pt", weights_only=True)


def update(parameter, kind, rate, decay, state, decayed=slice(None)):
    """One step by the formula; L2 is part of the gradient of the rows `decayed`."""
    gradient = parameter.grad.clone()
    gradient[decayed] += decay * parameter[decayed]
    if kind == "sgd":
        change = gradient
    elif kind == "adam":  # Kingma and Ba, algorithm 1
        state["step"] = state.get("step", 0) + 1
        state["m"] = 0.9 * state.get("m", 0.0) + 0.1 * gradient
        state["v"] = 0.999 * state.get("v", 0.0) + 0.001 * gradient**2
        first, second = state["m"] / (1 - 0.9 ** state["step"]), state["v"] / (1 - 0.999 ** state["step"])
        change = first / (second.sqrt() + EPS)
    else:
        square = gradient**2 if kind == "adagrad" else (gradient**2).mean(1, keepdim=True)
        state["sum"] = state.get("sum", 0.0) + square
        change = gradient / (state["sum"].sqrt() + EPS)
    parameter -= rate * change


class Reference(ReferenceDLRM):
    """Bags of no, one or several ids, in float64."""

    def loss(self, batch):
        jagged = batch.sparse.to_dict()
        vectors = [self.mlp("bottom_mlp", batch.dense.double(), last_relu=True)]
        self.seen = {name: jagged[name].values().unique() for name in self.features}
        for name in self.features:
            offsets = jagged[name].offsets()[:-1].long()
            vectors.append(nn.functional.embedding_bag(jagged[name].values(), self.bags[name], offsets, mode="sum"))
        pairs = [(vectors[i] * vectors[j]).sum(1) for i in range(len(vectors)) for j in range(i + 1, len(vectors))]
        logits = self.mlp("top_mlp", torch.cat([vectors[0], torch.stack(pairs, 1)], 1), last_relu=False).squeeze(1)
        return nn.functional.binary_cross_entropy_with_logits(logits, batch.labels.double())


def clip(parameters, most):
    norm = torch.stack([parameter.grad.norm() for parameter in parameters]).norm()
    for parameter in parameters:
        parameter.grad *= min(1.0, most / norm.item())


def reference(initial, optimizer, replicated):
    """The losses, and the weights behind the last step by their names."""
    model = Reference(initial, [feature.name for feature in PROBLEM.shape.features])
    tables, layers = dict(model.bags.items()), dict(model.mlps.items())
    state, losses = {id(each): {} for each in model.parameters()}, []
    for step in range(STEPS):
        model.zero_grad()
        loss = model.loss(PROBLEM.batch(step, 0, 1))
        loss.backward()
        losses.append(loss.detach())
        with torch.no_grad():
            if "clip_norm" in optimizer:
                clip([*layers.values(), *(tables.values() if replicated else ())], optimizer["clip_norm"])
            for name, table in tables.items():
                rows = slice(None) if replicated else model.seen[name]
                decay = optimizer.get("table_weight_decay" if replicated else "sparse_weight_decay", 0.0)
                rate = optimizer["sparse_learning_rate"]
                update(table, optimizer["sparse"], rate, decay, state[id(table)], rows)
            for layer in layers.values():
                decay, rate = optimizer.get("dense_weight_decay", 0.0), optimizer["dense_learning_rate"]
                update(layer, optimizer["dense"], rate, decay, state[id(layer)])
    final = {table_key(name): table for name, table in tables.items()}
    return torch.stack(losses), final | {key.replace("/", "."): value for key, value in layers.items()}


def largest(a, b):
    return max((a[key].double() - value).abs().max().item() for key, value in b.items())


@pytest.mark.parametrize("name", CASES)
def test_equals_the_formula(name, runs):
    run, optimizer = runs[name], CASES[name]["optimizer"]
    replicated = CASES[name]["types"] == REPLICATED
    losses, final = reference(run["initial"], optimizer, replicated)
    assert run["final"].keys() == final.keys()
    for part in ("embedding_bags", "_mlp."):
        assert largest(run["initial"], {key: value for key, value in final.items() if part in key}) > 0.03
    assert largest(run["final"], final) <= TOLERANCE
    assert (run["losses"].double() - losses).abs().max() <= 1e-6


@pytest.mark.parametrize("name", [name for name in CASES if "decay" in name or "clipped" in name])
def test_what_decay_and_clipping_change_is_more_than_the_tolerance(name, runs):
    given = CASES[name]["optimizer"]
    keys = ["sparse_learning_rate", "dense_learning_rate", "sparse", "dense"]
    without = {key: given[key] for key in keys}
    _, final = reference(runs[name]["initial"], without, CASES[name]["types"] == REPLICATED)
    assert largest(runs[name]["final"], final) > 10 * TOLERANCE

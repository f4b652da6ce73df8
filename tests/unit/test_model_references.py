"""Each model against its specification, written anew row by row in float64: logits, loss, every gradient."""

import math

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from dlrm_dist.data.batch import ClickBatch
from dlrm_dist.models.build import build_model
from dlrm_dist.models.task import ClickTask
from dlrm_dist.sections import ModelSection

FEATURES = [("A", 7), ("B", 7), ("C", 7)]
IDS = {
    "A": [[1], [2, 2], [], [6], [0, 3], [5]],
    "B": [[6], [0], [1, 2, 3], [], [4], [1]],
    "C": [[4], [4], [0], [1], [2], []],
}
ROWS, NUM_DENSE, DIM = 6, 3, 4
LABELS = [1.0, 0.0, 0.0, 1.0, 0.0, 1.0]
MLPS = {"embedding_dim": DIM, "bottom_mlp": (5, DIM), "top_mlp": (6, 1)}
SECTIONS = {
    "dlrm": ModelSection(name="dlrm", **MLPS),
    "dlrm, a table for two": ModelSection(name="dlrm", **MLPS, shared_tables=("B+A",)),
    "dlrm_dcnv2": ModelSection(name="dlrm_dcnv2", **MLPS, cross_layers=2, cross_rank=3),
    "dlrm_projection": ModelSection(
        name="dlrm_projection", **MLPS, projection_branch1=(7, 2 * DIM), projection_branch2=(3 * DIM,)
    ),
    "dcn": ModelSection(name="dcn", embedding_dims=(4, 8, 12), cross_layers=3, deep_mlp=(6, 5)),
    "paddlerec": ModelSection(name="paddlerec", **{**MLPS, "top_mlp": (6, 2)}),
    "dlrm, regularised": ModelSection(name="dlrm", **{**MLPS, "top_mlp": (6, 5, 1)}, batch_norm=True, dropout=0.3),
    "dlrm_dcnv2, regularised": ModelSection(
        name="dlrm_dcnv2", **MLPS, cross_layers=2, cross_rank=3, batch_norm=True, dropout=0.3
    ),
    "dcn, a matrix": ModelSection(name="dcn", embedding_dims=(4, 8, 12), deep_mlp=(6, 5), cross="matrix", dropout=0.2),
    "dcn, normalised": ModelSection(name="dcn", embedding_dims=(4, 8, 12), deep_mlp=(6, 5), batch_norm=True),
}
TOLERANCE = {"rtol": 0, "atol": 1e-10}
"""Both sides are float64; values are below 10."""


def linear(x, weight, bias):
    return torch.stack([(weight * row).sum(1) + bias for row in x])


def normalised(x, weights, name):
    """Each column to mean 0, variance 1, then scaled and shifted."""
    mean = x.sum(0) / len(x)
    deviation = (((x - mean) ** 2).sum(0) / len(x) + 1e-5) ** 0.5
    return (x - mean) / deviation * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def layers_of(weights, name):
    """Numbers of the linear layers of an MLP."""
    numbers = sorted({int(key.split(".")[-2]) for key in weights if key.startswith(f"{name}.")})
    return [number for number in numbers if weights[f"{name}.{number}.weight"].dim() == 2]


def mlp(x, weights, name, logit=False, dropout=0.0):
    """Linear, batch normalisation where there are weights for one, ReLU, dropout; only the first for a logit."""
    for number in (numbers := layers_of(weights, name)):
        x = linear(x, weights[f"{name}.{number}.weight"], weights[f"{name}.{number}.bias"])
        if logit and number == numbers[-1]:
            return x
        if weights.get(f"{name}.{number + 1}.weight", x).dim() == 1:
            x = normalised(x, weights, f"{name}.{number + 1}")
        x = torch.where(x > 0, x, torch.zeros_like(x))
        if dropout:  # the same draw as the model's, which begins at the same seed
            kept = torch.nn.functional.dropout(torch.ones_like(x), dropout) != 0
            x = torch.where(kept, x / (1 - dropout), torch.zeros_like(x))
    return x


def paddlerec_mlp(x, weights, name):
    """Linear, ReLU, batch normalisation."""
    for number in layers_of(weights, name):
        x = linear(x, weights[f"{name}.{number}.weight"], weights[f"{name}.{number}.bias"])
        x = normalised(torch.where(x > 0, x, torch.zeros_like(x)), weights, f"{name}.{number + 2}")
    return x


def embeddings(weights, table_of):
    """Of each feature, [rows, dim]: sums of its table's rows."""
    found = {}
    for name, lists in IDS.items():
        table = weights[f"embeddings.embedding_bags.{table_of[name]}.weight"]
        bags = [sum((table[id_] for id_ in ids), torch.zeros(table.shape[1], dtype=table.dtype)) for ids in lists]
        found[name] = torch.stack(bags)
    return found


def pairs(vectors):
    """Section 2.1.3 of arXiv 1906.00091: the products of all pairs."""
    found = [(x * y).sum(1) for i, x in enumerate(vectors) for y in vectors[i + 1 :]]
    return torch.stack(found, dim=1)


def dlrm(dense, embedded, weights, dropout):
    bottom = mlp(dense, weights, "bottom_mlp")
    return mlp(torch.cat([bottom, pairs([bottom, *embedded.values()])], 1), weights, "top_mlp", True, dropout)[:, 0]


def dlrm_dcnv2(dense, embedded, weights, dropout):
    """Equation 2 of arXiv 2008.13535, the matrix as a product of two of low rank."""
    x0 = x = torch.cat([mlp(dense, weights, "bottom_mlp"), *embedded.values()], 1)
    for layer in range(2):
        matrix = weights[f"interaction.cross.W_kernels.{layer}"] @ weights[f"interaction.cross.V_kernels.{layer}"]
        x = x0 * linear(x, matrix, weights[f"interaction.cross.bias.{layer}"]) + x
    return mlp(x, weights, "top_mlp", True, dropout)[:, 0]


def dlrm_projection(dense, embedded, weights, dropout):
    bottom = mlp(dense, weights, "bottom_mlp")
    everything = torch.cat([bottom, *embedded.values()], 1)
    first, second = (mlp(everything, weights, f"interaction.arch.interaction_branch{i}") for i in (1, 2))
    of_second = second.shape[1] // DIM
    products = [
        sum(first[:, i * DIM + d] * second[:, d * of_second + j] for d in range(DIM))
        for i in range(first.shape[1] // DIM)
        for j in range(of_second)
    ]
    return mlp(torch.cat([bottom, torch.stack(products, 1)], 1), weights, "top_mlp", True, dropout)[:, 0]


def dcn(dense, embedded, weights, dropout):
    """Equations 2 to 5 of arXiv 1708.05123; of layers with a matrix, equation 2 of arXiv 2008.13535."""
    x0 = x = torch.cat([*embedded.values(), dense], 1)
    for layer in range(3):
        if "cross.layers.0.weight" in weights:
            matrix, bias = weights[f"cross.layers.{layer}.weight"], weights[f"cross.layers.{layer}.bias"]
            x = x0 * linear(x, matrix, bias) + x
        else:
            kernel, bias = weights[f"cross.kernels.{layer}"], weights[f"cross.biases.{layer}"]
            x = torch.stack([a0 * (a * kernel).sum() + bias + a for a0, a in zip(x0, x, strict=True)])
    both = torch.cat([x, mlp(x0, weights, "deep", dropout=dropout)], 1)
    return linear(both, weights["combination.weight"], weights["combination.bias"])[:, 0]


def paddlerec(dense, embedded, weights, dropout):
    """The dense vector comes last among those that are multiplied; the top layer's columns follow. Two logits."""
    bottom = paddlerec_mlp(dense, weights, "bottom_mlp")
    features = len(embedded)
    ours = {pair: i for i, pair in enumerate((i, j) for i in range(features + 1) for j in range(i + 1, features + 1))}
    theirs = [(i, j) for i in range(features + 1) for j in range(i + 1, features + 1)]
    to_ours = {i: (i + 1) % (features + 1) for i in range(features + 1)}
    columns = [DIM + ours[tuple(sorted((to_ours[i], to_ours[j])))] for i, j in theirs]
    first = weights["top_mlp.0.weight"]
    weights = {**weights, "top_mlp.0.weight": first[:, [*range(DIM), *columns]]}
    return paddlerec_mlp(torch.cat([bottom, pairs([*embedded.values(), bottom])], 1), weights, "top_mlp")


REFERENCES = {
    "dlrm": dlrm,
    "dlrm_dcnv2": dlrm_dcnv2,
    "dlrm_projection": dlrm_projection,
    "dcn": dcn,
    "paddlerec": paddlerec,
}


def cross_entropy(outputs):
    """The mean of -log p(label): of one logit by the logistic function, of two by the softmax."""
    total = 0.0
    for output, label in zip(outputs, LABELS, strict=True):
        if output.dim():
            probability = output[int(label)].exp() / output.exp().sum()
        else:
            click = 1 / (1 + (-output).exp())
            probability = click if label else 1 - click
        total = total - probability.log()
    return total / ROWS


def batch(fillers=0):
    """The rows, and fillers behind them with anything in their dense features."""
    lists = [bags + [[]] * fillers for bags in IDS.values()]
    dense = torch.randn(ROWS, NUM_DENSE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    dense = torch.cat([dense, torch.full((fillers, NUM_DENSE), 100.0, dtype=torch.float64)])
    return ClickBatch(
        dense,
        KeyedJaggedTensor.from_lengths_sync(
            keys=list(IDS),
            values=torch.tensor([id_ for bags in lists for ids in bags for id_ in ids]),
            lengths=torch.tensor([len(ids) for bags in lists for ids in bags]),
        ),
        torch.tensor(LABELS + [0.0] * fillers),
        torch.tensor([1.0] * ROWS + [0.0] * fillers),
        torch.tensor(1 / ROWS),
    )


def made(section):
    """The model in float64 with every number drawn, so that no zero hides a mistake."""
    model = build_model(section, NUM_DENSE, FEATURES, 0, torch.device("cpu"))
    model.embeddings.to_empty(device="cpu")
    model.double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-1, 1, generator=generator)
    return model


def looked_up(model, sparse, table_of):
    """The embeddings in float64, which a collection does not give, in another order than that of the features."""
    bags = [
        torch.nn.functional.embedding_bag(
            values.values(), model.embeddings.embedding_bags[table_of[name]].weight, values.offsets()[:-1], mode="sum"
        )
        for name, values in reversed(sparse.to_dict().items())
    ]
    return KeyedTensor.from_tensor_list(list(reversed(sparse.keys())), bags)


def table_names(section):
    if section.name == "paddlerec":
        return dict.fromkeys(IDS, "t_all")
    names = {name: f"t_{name}" for name in IDS}
    return names | dict.fromkeys("AB", "t_A+B") if section.shared_tables else names


@pytest.mark.parametrize("name", SECTIONS)
def test_logits_loss_and_gradients(name):
    section = SECTIONS[name]
    model = made(section)
    weights = {key: value.detach().clone().requires_grad_() for key, value in model.named_parameters()}
    given = batch()
    torch.manual_seed(4)
    embedded = embeddings(weights, table_names(section))
    outputs = REFERENCES[section.name](given.dense, embedded, weights, section.dropout)
    expected = cross_entropy(outputs)
    expected.backward()
    torch.manual_seed(4)
    logits = model.logits(given.dense, looked_up(model, given.sparse, table_names(section)))
    torch.manual_seed(4)
    torch.testing.assert_close(model(given.dense, given.sparse), logits, rtol=0, atol=1e-5)  # its tables give fp32
    assert logits.shape == (ROWS,)
    wanted = outputs[:, 1] - outputs[:, 0] if outputs.dim() == 2 else outputs
    torch.testing.assert_close(logits, wanted, **TOLERANCE)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, given.labels.double())
    torch.testing.assert_close(loss, expected, **TOLERANCE)
    loss.backward()
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, weights[key].grad, **TOLERANCE, msg=lambda text, key=key: key + text)
        assert key.endswith("bias") or parameter.grad.abs().max() > 1e-4, key


@pytest.mark.parametrize("name", SECTIONS)
def test_fillers_change_neither_loss_nor_gradients_nor_statistics(name):
    found = []
    for fillers in (0, 3):
        model = made(SECTIONS[name].model_copy(update={"dropout": 0.0})).float()
        given = batch(fillers)
        given.dense = given.dense.float()
        loss, _ = ClickTask(model)(given)
        loss.backward()
        found.append([loss, *(parameter.grad for parameter in model.parameters()), *model.buffers()])
    for without, padded in zip(*found, strict=True):
        torch.testing.assert_close(padded, without, rtol=1e-4, atol=1e-5)


def test_nothing_is_dropped_in_evaluation():
    section = ModelSection(name="dlrm", **MLPS, dropout=0.9)
    given = batch()
    plain = made(section.model_copy(update={"dropout": 0.0}))
    found = [model(given.dense, given.sparse) for model in (made(section).eval(), plain, made(section))]
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_a_softmax_over_two_logits_is_a_logistic_function_of_their_difference():
    """Loss and gradients by both logits, large ones too."""
    outputs = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 20
    labels = (torch.arange(50) % 3 == 0).double()
    leaves = [outputs.clone().requires_grad_() for _ in range(2)]
    two = torch.nn.functional.cross_entropy(leaves[0], labels.long())
    one = torch.nn.functional.binary_cross_entropy_with_logits(leaves[1][:, 1] - leaves[1][:, 0], labels)
    torch.testing.assert_close(one, two, rtol=1e-14, atol=0)
    for each in (one, two):
        each.backward()
    torch.testing.assert_close(leaves[1].grad, leaves[0].grad, rtol=0, atol=1e-16)


def layer_statistics(name):
    """Mean, standard deviation and largest size of the weights and biases of a wide first layer."""
    mlps = {"bottom_mlp": (3000, DIM), "top_mlp": (6, 2 if name == "paddlerec" else 1)}
    section = ModelSection(name=name, embedding_dim=DIM, deep_mlp=(3000,), **mlps)
    model = build_model(section, 100, FEATURES, 0, torch.device("cpu"))
    layer = model.deep[0] if name == "dcn" else model.bottom_mlp[0]
    return layer.in_features, [
        (each.mean().item(), each.std().item(), each.abs().max().item()) for each in layer.parameters()
    ]


def uniform(bound):
    """Standard deviation and bound."""
    return bound / math.sqrt(3), bound


CUT = 0.8796
"""Standard deviation of a normal distribution cut off at two of its own."""


@pytest.mark.parametrize(
    ("name", "weight", "bias"),
    [
        ("dlrm", lambda n: (math.sqrt(2 / (n + 3000)), None), lambda n: (math.sqrt(1 / 3000), None)),
        ("dlrm_dcnv2", lambda n: uniform(1 / math.sqrt(n)), lambda n: uniform(1 / math.sqrt(n))),
        ("dlrm_projection", lambda n: uniform(1 / math.sqrt(n)), lambda n: uniform(1 / math.sqrt(n))),
        ("dcn", lambda n: uniform(math.sqrt(6 / (n + 3000))), lambda n: (0.0, 0.0)),
        ("paddlerec", lambda n: (CUT / math.sqrt(n), 2 / math.sqrt(n)), lambda n: (0.0, 0.0)),
    ],
)
def test_layers_are_initialised_as_the_source_says(name, weight, bias):
    inputs, found = layer_statistics(name)
    for (mean, std, largest), (wanted_std, bound) in zip(found, (weight(inputs), bias(inputs)), strict=True):
        assert abs(mean) <= wanted_std / 10
        assert std == pytest.approx(wanted_std, rel=0.03)
        assert bound is None or bound * 0.99 <= largest <= bound


@pytest.mark.parametrize(
    ("name", "expected"), [("dlrm", uniform(0.05)), ("dcn", uniform(0.05)), ("paddlerec", (CUT, 2))]
)
def test_tables_are_initialised_as_the_source_says(name, expected):
    section = ModelSection(name=name, top_mlp=(6, 2 if name == "paddlerec" else 1))
    model = build_model(section, 2, [("A", 400)], 0, torch.device("cpu"))
    (table,) = model.embeddings.embedding_bag_configs()
    values = torch.empty(400, 16)
    table.init_fn(values, generator=torch.Generator().manual_seed(0))
    assert values.std().item() == pytest.approx(expected[0], rel=0.03)
    assert expected[1] * 0.99 <= values.abs().max() <= expected[1]

"""Models against references written from the papers, one element at a time, in float64."""

import itertools

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedTensor

from dlrm_dist.models.dcn import CrossNet, MatrixCrossNet
from dlrm_dist.models.interaction import CrossInteraction, DotInteraction
from dlrm_dist.models.mlp import MLP, PaddedLinear, nothing

NAMES, DIM = ["a", "b", "c"], 4
ORDERS = list(itertools.permutations(NAMES))


def inputs(rows=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    dense = torch.randn(rows, DIM, generator=generator, dtype=dtype).requires_grad_()
    embeddings = {name: torch.randn(rows, DIM, generator=generator, dtype=dtype).requires_grad_() for name in NAMES}
    return dense, embeddings


def keyed(embeddings, order):
    return KeyedTensor.from_tensor_list(list(order), [embeddings[name] for name in order])


def dots(dense, embeddings):
    """Section 3 of arXiv 1906.00091: the dense vector, then each pair's product."""
    vectors = [dense, *embeddings.values()]
    pairs = [(x * y).sum(1) for i, x in enumerate(vectors) for y in vectors[i + 1 :]]
    return torch.cat([dense, torch.stack(pairs, dim=1)], dim=1)


@pytest.mark.parametrize("order", ORDERS)
def test_dot_products_and_gradients_whatever_the_order_of_the_embeddings(order):
    dense, embeddings = inputs()
    interaction = DotInteraction(NAMES, DIM)
    found = interaction(dense, keyed(embeddings, order))
    expected = dots(dense, embeddings)
    assert interaction.out_features == expected.shape[1] == DIM + 6
    assert found.shape[1] == 16 and not found[:, 10:].any()
    torch.testing.assert_close(found[:, :10], expected, rtol=0, atol=1e-12)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(2), dtype=found.dtype)
    leaves = [dense, *embeddings.values()]
    wanted = torch.autograd.grad((expected * weights[:, :10]).sum(), leaves)
    for mine, theirs in zip(torch.autograd.grad((found * weights).sum(), leaves), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_one_interaction_serves_two_orders():
    """As a run does that is resumed by another plan, and one whose evaluation follows training."""
    dense, embeddings = inputs()
    interaction = DotInteraction(NAMES, DIM)
    found = [interaction(dense, keyed(embeddings, order)) for order in ORDERS * 2]
    assert all(torch.equal(found[0], each) for each in found)


def test_dot_products_of_bf16_layers_are_made_in_fp32_on_cpu():
    dense, embeddings = inputs(dtype=torch.float32)
    exact = dots(dense, embeddings)
    with torch.autocast("cpu", torch.bfloat16):
        found = DotInteraction(NAMES, DIM)(dense, keyed(embeddings, NAMES))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[:, :10], exact, rtol=0, atol=1e-5)
    found.sum().backward()
    assert all(each.grad.dtype == torch.float32 for each in embeddings.values())


@pytest.mark.parametrize("order", ORDERS[:3])
def test_the_cross_network_keeps_the_order_of_the_features(order):
    """Equation 2 of arXiv 2008.13535: x0 * (U V x + b) + x."""
    dense, embeddings = inputs()
    interaction = CrossInteraction(NAMES, DIM, 2, 3).double()
    cross = interaction.cross
    with torch.no_grad():
        for parameter in cross.parameters():
            parameter.uniform_(-1, 1, generator=torch.Generator().manual_seed(3))
    first = x = torch.cat([dense, *embeddings.values()], dim=1)
    for layer in range(2):
        x = first * (x @ cross.V_kernels[layer].T @ cross.W_kernels[layer].T + cross.bias[layer].flatten()) + x
    torch.testing.assert_close(interaction(dense, keyed(embeddings, order)), x, rtol=0, atol=1e-12)


def test_a_padded_layer_is_the_layer():
    layer = PaddedLinear(7, 3).double()
    rows = torch.randn(4, 7, dtype=torch.float64)
    padded = torch.cat([rows, torch.zeros(4, 1, dtype=torch.float64)], dim=1)
    expected = torch.nn.functional.linear(rows, layer.weight, layer.bias)
    torch.testing.assert_close(layer(padded), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer(rows), expected, rtol=0, atol=1e-12)
    mine, theirs = (torch.autograd.grad(out.square().sum(), layer.weight)[0] for out in (layer(padded), layer(rows)))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_a_matrix_that_is_an_outer_product_with_ones_is_a_vector():
    """The second version of DCN's cross network has the first in it, but for where the bias stands."""
    vectors, matrices = CrossNet(5, 3).double(), MatrixCrossNet(5, 3).double()
    with torch.no_grad():
        for kernel, layer in zip(vectors.kernels, matrices.layers, strict=True):
            kernel.normal_()
            layer.weight.copy_(kernel.expand(5, 5)), layer.bias.zero_()
    x = torch.randn(4, 5, dtype=torch.float64)
    torch.testing.assert_close(matrices(x), vectors(x), rtol=0, atol=1e-10)


def test_an_mlp_is_linear_layers_and_relus():
    mlp = MLP(3, [5, 4, 1], behind_last=nothing).double()
    x = expected = torch.randn(6, 3, dtype=torch.float64)
    layers = [module for module in mlp if isinstance(module, torch.nn.Linear)]
    for number, layer in enumerate(layers):
        expected = expected @ layer.weight.T + layer.bias
        expected = expected.clamp(min=0) if number < 2 else expected
    torch.testing.assert_close(mlp(x), expected, rtol=0, atol=1e-12)

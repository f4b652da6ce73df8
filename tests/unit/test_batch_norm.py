"""Batch normalisation against torch's, and its statistics over ranks and without fillers."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

from dlrm_dist.models.batch_norm import BatchNorm, counting_rows

COLUMNS = 3


def both(dtype=torch.float64):
    torchs, ours = torch.nn.BatchNorm1d(COLUMNS).to(dtype), BatchNorm(COLUMNS).to(dtype)
    with torch.no_grad():
        torchs.weight.copy_(torch.tensor([0.5, -1, 2]))
        torchs.bias.copy_(torch.tensor([0.1, 0.2, -3]))
    ours.load_state_dict(torchs.state_dict())
    return torchs, ours


def rows(count=11, seed=0, dtype=torch.float64):
    x = torch.randn(count, COLUMNS, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return x * torch.tensor([1, 10, 0.1], dtype=dtype) + torch.tensor([0, 50, -1], dtype=dtype)


def trained(norm, x, grad):
    x = x.clone().requires_grad_()
    norm.zero_grad()
    out = norm(x)
    out.backward(grad)
    return [out.detach(), x.grad, *(each.grad for each in norm.parameters())]


def assert_close(a, b, tolerance=1e-10):
    for mine, theirs in zip(a, b, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance)


def test_training_and_evaluation_are_torchs():
    torchs, ours = both()
    for seed in range(3):
        grad = rows(seed=9)
        assert_close(trained(ours, rows(seed=seed), grad), trained(torchs, rows(seed=seed), grad))
        assert_close(ours.buffers(), torchs.buffers())
    torchs.eval(), ours.eval()
    assert_close([ours(rows(seed=4))], [torchs(rows(seed=4))])
    assert ours.num_batches_tracked == 3


def test_a_large_mean_costs_no_digits():
    """In fp32 the mean of the squares less the square of the mean of such columns is noise."""
    torchs, ours = both()
    x = rows(200) + 1e4
    assert_close([ours.float()(x.float())], [torchs(x.float().double()).float()], 0.02)
    assert (ours(x.float())[:, 0].std() - 0.5).abs() < 0.01


@pytest.mark.parametrize("parts", [[11], [4, 7], [6, 5, 0]])
def test_rows_spread_over_ranks(parts):
    """The ranks take turns: each stands still where the sum over ranks is asked for, which threads make easy."""
    torchs, _ = both()
    x, grad = rows(), rows(seed=9)
    expected = trained(torchs, x, grad)
    barrier, box = Barrier(len(parts)), {}

    def rank(number):
        def summed(values):
            box[number] = values
            barrier.wait(10)
            total = sum(box[each] for each in range(len(parts)))
            barrier.wait(10)
            return total

        _, norm = both()
        norm.sum_over_ranks = summed
        mine = slice(sum(parts[:number]), sum(parts[: number + 1]))
        padded = torch.full((8 if len(parts) > 1 else 11, COLUMNS), 77.0, dtype=torch.float64)
        padded[: parts[number]] = x[mine]
        grads = torch.zeros_like(padded)
        grads[: parts[number]] = grad[mine]
        weights = torch.zeros(len(padded))
        weights[: parts[number]] = 0.5  # a row counts once, whatever its weight
        with counting_rows(weights):
            out, of_x, of_weight, of_bias = trained(norm, padded, grads)
        return out[: parts[number]], of_x[: parts[number]], of_weight, of_bias, norm

    with ThreadPoolExecutor(len(parts)) as pool:
        outs, of_x, of_weight, of_bias, norms = zip(*pool.map(rank, range(len(parts))), strict=True)
    assert_close([torch.cat(outs), torch.cat(of_x), sum(of_weight), sum(of_bias)], expected)
    for norm in norms:
        assert_close(norm.buffers(), torchs.buffers())


def test_rows_count_again_behind_the_block():
    _, ours = both()
    x = rows()
    with counting_rows(torch.zeros(11)):
        ours(x)
    assert torch.equal(ours(x), both()[1](x))


def test_bf16_layers_are_normalised_in_fp32():
    _, ours = both(torch.float32)
    out = ours(rows(dtype=torch.float32).bfloat16())
    assert out.dtype == torch.float32

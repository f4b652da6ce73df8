"""Row-wise Adagrad on the CPU by FBGEMM's plain loop: against its formula in float64, beside the generated kernel."""

import pytest
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode, EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice, SplitTableBatchedEmbeddingBagsCodegen

from dlrm_dist.cpu_adagrad import avoid_slow_kernel

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = [(40, 16), (7, 8), (300, 20), (1, 4)]
"""Rows and columns: with rows that come many times in a batch, and columns that fill no register."""
BATCH, STEPS, RATE, EPS = 64, 30, 0.05, 1e-8
FLOAT32 = 1e-6
"""Sums of some 10 gradients a row and 30 steps, each rounded by 6e-8 of values up to 1."""


def make(optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD, precision=SparseType.FP32, columns=None, features=None):
    return SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, columns or dim, EmbeddingLocation.HOST, ComputeDevice.CPU) for rows, dim in SHAPES],
        feature_table_map=features,
        optimizer=optimizer,
        learning_rate=RATE,
        eps=EPS,
        weights_precision=precision,
        bounds_check_mode=BoundsCheckMode.FATAL,
    )


def batches():
    """Lists of 0 to 5 ids with repetitions, a feature without any id, and weights for every other batch."""
    generator = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        lengths = torch.randint(0, 6, (len(SHAPES), BATCH), generator=generator)
        lengths[step % len(SHAPES)] = 0 if step % 5 == 0 else lengths[step % len(SHAPES)]
        ids = [
            torch.randint(0, rows, (int(n.sum()),), generator=generator)
            for n, (rows, _) in zip(lengths, SHAPES, strict=True)
        ]
        grad = torch.randn(BATCH, sum(dim for _, dim in SHAPES), generator=generator) / 8
        weights = torch.rand(int(lengths.sum()), generator=generator) if step % 2 else None
        yield ids, lengths, weights, grad


def train(tables):
    """The last output, and all weights and moments behind the last step."""
    for ids, lengths, weights, grad in batches():
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.flatten().cumsum(0)])
        out = tables(indices=torch.cat(ids), offsets=offsets, per_sample_weights=weights)
        out.backward(grad)
    moments = [state["sum"] for state in tables.get_optimizer_state()]
    return [out.detach(), *tables.split_embedding_weights(), *moments]


def reference(initial):
    """The same with `nn.functional.embedding_bag` and the formula, in float64."""
    tables = [weight.double().requires_grad_() for weight in initial]
    moments = [torch.zeros(rows, dtype=torch.float64) for rows, _ in SHAPES]
    for ids, lengths, weights, grad in batches():
        places = lengths.cumsum(1) - lengths
        parts = [None] * len(SHAPES) if weights is None else weights.double().split([len(each) for each in ids])
        bags = [
            torch.nn.functional.embedding_bag(i, t, at, mode="sum", per_sample_weights=part)
            for i, t, at, part in zip(ids, tables, places, parts, strict=True)
        ]
        out = torch.cat(bags, 1)
        for table, moment, g in zip(tables, moments, torch.autograd.grad(out, tables, grad.double()), strict=True):
            moment += (g**2).mean(1)
            with torch.no_grad():
                table -= RATE * g / (moment.sqrt() + EPS).unsqueeze(1)
    return [out.detach(), *(table.detach() for table in tables), *moments]


def errors(found, right):
    return [((a.flatten() - b.flatten()).abs() / b.abs().max()).max().item() for a, b in zip(found, right, strict=True)]


def test_the_loop_follows_the_formula_as_closely_as_the_generated_kernel():
    stock, loop = make(), make()
    stock.init_embedding_weights_uniform(-0.5, 0.5)
    loop.weights_host.data.copy_(stock.weights_host.data)
    initial = [weight.clone() for weight in stock.split_embedding_weights()]
    avoid_slow_kernel([loop])
    right, generated, found = reference(initial), train(stock), train(loop)
    assert all((a - b).abs().max() > 0.1 for a, b in zip(initial, right[1 : 1 + len(SHAPES)], strict=True))
    assert not torch.equal(stock.weights_host, loop.weights_host)  # another kernel indeed
    assert max(errors(found, right)) <= min(FLOAT32, 2 * max(errors(generated, right)))
    assert [each.shape for each in found] == [each.shape for each in generated]


def test_an_id_beyond_its_table_is_still_refused():
    tables = make()
    avoid_slow_kernel([tables])
    offsets = torch.arange(len(SHAPES) + 1)
    tables(indices=torch.tensor([39, 6, 299, 0]), offsets=offsets)
    with pytest.raises(RuntimeError, match="idx < num_rows"):
        tables(indices=torch.tensor([39, 7, 299, 0]), offsets=offsets)


@pytest.mark.parametrize("batch", [0, 1])
def test_small_batches(batch):
    tables = make()
    avoid_slow_kernel([tables])
    offsets = torch.zeros(len(SHAPES) * batch + 1, dtype=torch.int64)
    out = tables(indices=torch.empty(0, dtype=torch.int64), offsets=offsets)
    assert torch.equal(out, torch.zeros(batch, sum(dim for _, dim in SHAPES)))


@pytest.mark.parametrize(
    ("options", "threads"),
    [
        ({"optimizer": EmbOptimType.EXACT_SGD}, 1),
        ({"optimizer": EmbOptimType.EXACT_ADAGRAD}, 1),
        ({"precision": SparseType.FP16}, 1),
        ({"features": [0, 0, 1, 2, 3]}, 1),
        ({"columns": 132}, 1),
        ({"columns": 64}, 3),
    ],
)
def test_others_stay_as_they_are(options, threads):
    torch.set_num_threads(threads)
    tables = make(**options)
    before = {name: buffer.clone() for name, buffer in tables.named_buffers()}
    avoid_slow_kernel([tables])
    assert not tables._forward_pre_hooks
    assert all(torch.equal(buffer, before[name]) for name, buffer in tables.named_buffers())

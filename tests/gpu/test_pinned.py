"""What needs a CUDA device: batches in page-locked memory."""

import pytest
import torch

from dlrm_dist.data.loader import SplitReader
from tests.helpers import numbered_dataset

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: page-locked memory")


def test_pinned_batches_hold_the_same_rows(tmp_path):
    info = numbered_dataset(tmp_path / "data", {"train": 163})
    plain, pinned = (SplitReader(tmp_path / "data", info, "train", 0, 1, pin) for pin in (False, True))
    order, count = plain.order(10, seed=1), 0
    for one, other in zip(plain.batches(order), pinned.batches(order), strict=True):
        sparse = (other.sparse.values(), other.sparse.lengths())
        assert all(tensor.is_pinned() for tensor in (other.dense, other.labels, other.weights, *sparse))
        moved = other.to(torch.device("cuda"), non_blocking=True)
        torch.cuda.synchronize()
        for name in ("dense", "labels", "weights", "loss_scale"):
            assert torch.equal(getattr(moved, name).cpu(), getattr(one, name))
        assert torch.equal(moved.sparse.values().cpu(), one.sparse.values())
        assert torch.equal(moved.sparse.lengths().cpu(), one.sparse.lengths())
        count += 1
    assert count == 17

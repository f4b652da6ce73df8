"""What differs between two checkpoints, tensor by tensor."""

from collections.abc import Collection
from dataclasses import dataclass

import torch

from dlrm_dist import progress
from dlrm_dist.checkpoint.source import Source
from dlrm_dist.checkpoint.state import OPTIMIZER


@dataclass(frozen=True)
class Difference:
    """A tensor that is not the same in both.

    Attributes:
        key: its name.
        what: "missing in A", "missing in B", "size", or "values".
        largest: the largest absolute difference, where values can be compared.
        share: the share of elements that differ.
    """

    key: str
    what: str
    largest: float = 0.0
    share: float = 0.0


def comparable(a: Source, b: Source) -> list[str]:
    """The names to compare: of both sides, without the optimizer's where one side has nothing of it."""
    both_have = all(any(key.startswith(OPTIMIZER) for key in each.sizes) for each in (a, b))
    return sorted(key for key in a.sizes.keys() | b.sizes.keys() if both_have or not key.startswith(OPTIMIZER))


def compare(a: Source, b: Source, keys: Collection[str], tolerance: float) -> list[Difference]:
    """The tensors that differ by more than `tolerance`; memory for one tensor of each side."""
    found = []
    for key in progress.each(keys, "diff", "tensors"):
        if key not in a.sizes or key not in b.sizes:
            found.append(Difference(key, f"missing in {'A' if key not in a.sizes else 'B'}"))
        elif a.sizes[key] != b.sizes[key]:
            found.append(Difference(key, f"size {list(a.sizes[key])} and {list(b.sizes[key])}"))
        else:
            left, right = a.read(key), b.read(key)
            if torch.equal(left, right):
                continue
            apart = (left.double() - right.double()).abs()
            largest = apart.max().item()
            if not largest <= tolerance:  # NaN is more than any tolerance
                found.append(Difference(key, "values", largest, (left != right).double().mean().item()))
    return found

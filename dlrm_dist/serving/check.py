"""An export against the trained model: how far its probabilities and its AUC may differ, and do."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dlrm_dist.metrics import MetricState
from dlrm_dist.serving.bags import Precision
from dlrm_dist.serving.bundle import Check
from dlrm_dist.serving.program import Inputs, Program

TOLERANCES: dict[Precision, tuple[float, float]] = {
    "fp32": (1e-6, 1e-6),
    "fp16": (2e-3, 1e-4),
    "int8": (2e-2, 5e-4),
    "int4": (3e-1, 1e-2),
}
"""The largest difference of a probability, and of the AUC. fp32 adds in another order only; a number in fp16 is off by
2^-12 of itself, in int8 by 1/510 of its row's range, in int4 by 1/30."""


class DiffersError(Exception):
    """An export differs from the trained model by more than is allowed: one line."""


def compare(program: Program, inputs: Sequence[Inputs], labels: Tensor, before: Tensor, precision: Precision) -> Check:
    """Score the inputs with an export.

    Args:
        program: the export's, as it was loaded from its file.
        inputs: batches of real rows.
        labels: of these rows, float32 [rows].
        before: the trained model's probabilities, float32 [rows].
        precision: of the tables.
    """
    with torch.no_grad():
        after = torch.cat([program(*each) for each in inputs])
    tolerance, auc_tolerance = TOLERANCES[precision]
    auc, auc_before = _auc(after, labels), _auc(before, labels)
    return Check(
        rows=len(labels),
        difference=(after - before).abs().max().item(),
        tolerance=tolerance,
        auc=auc,
        auc_change=None if auc is None or auc_before is None else abs(auc - auc_before),
        auc_tolerance=auc_tolerance,
    )


def _auc(probabilities: Tensor, labels: Tensor) -> float | None:
    """None where all labels are alike."""
    state = MetricState(torch.device("cpu"))
    state.update(probabilities.double().logit(eps=1e-9).float(), labels, torch.ones_like(labels))
    auc = state.compute().auc
    return None if math.isnan(auc) else auc

"""Optimizers: which classes the config's names mean, and on which device each runs."""

from typing import Any

import torch
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from dlrm_dist.config import OptimizerSection, TrainSection
from dlrm_dist.errors import UserError

Optimizer = tuple[type[torch.optim.Optimizer], dict[str, Any]]
"""An optimizer class and its keyword arguments."""

_CLASSES: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "rowwise_adagrad": RowWiseAdagrad,
    "adam": torch.optim.Adam,
}
_FUSED_ON_CPU = ("sgd", "adagrad", "rowwise_adagrad")


def check_device(section: OptimizerSection, device_type: str) -> None:
    """Refuse a fused optimizer for which FBGEMM has no kernel on the device.

    Raises:
        UserError: it has none.
    """
    if device_type == "cpu" and section.sparse not in _FUSED_ON_CPU:
        allowed = ", ".join(_FUSED_ON_CPU)
        raise UserError(
            f"optimizer.sparse is {section.sparse}, which has no fused kernel on CPU; "
            f"use one of {allowed}, or a GPU (--runtime.device cuda)"
        )


def sparse_optimizer(section: OptimizerSection, learning_rate: float) -> Optimizer:
    """The tables' optimizer; a fresh dict each time, for TorchRec changes the one that it is given."""
    rate = learning_rate if section.sparse_learning_rate is None else section.sparse_learning_rate
    return _optimizer(section.sparse, rate, section.eps)


def dense_optimizer(section: OptimizerSection, learning_rate: float) -> Optimizer:
    """The MLPs' optimizer."""
    rate = learning_rate if section.dense_learning_rate is None else section.dense_learning_rate
    return _optimizer(section.dense, rate, section.eps)


def learning_rate_factor(section: TrainSection, step: int) -> float:
    """What the learning rates are multiplied by at `step` (from 0): linear warm-up, then quadratic decay to zero.

    The decay is the one of the paper's code and of MLPerf's DLRM: ((D - t) / D)^2 at t steps behind `decay_start`.
    """
    if step < section.warmup_steps:
        return (step + 1) / section.warmup_steps
    if section.decay_steps is None or step < section.decay_start:
        return 1.0
    return max(0.0, 1 - (step - section.decay_start) / section.decay_steps) ** 2


def _optimizer(name: str, learning_rate: float, eps: float) -> Optimizer:
    arguments: dict[str, Any] = {"lr": learning_rate}
    if name != "sgd":
        arguments["eps"] = eps
    return _CLASSES[name], arguments

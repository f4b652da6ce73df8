"""Optimizers: which classes the config's names mean, and on which device and for which tables each works."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import WeightDecayMode
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from dlrm_dist.errors import UserError
from dlrm_dist.sections import OptimizerSection

Optimizer = tuple[type[torch.optim.Optimizer], dict[str, Any]]
"""An optimizer class and its keyword arguments."""

_CLASSES: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "rowwise_adagrad": RowWiseAdagrad,
    "adam": torch.optim.Adam,
}
_FUSED_ON_CPU = ("sgd", "adagrad", "rowwise_adagrad")
_REPLICATED = "data_parallel"


def check_tables(
    section: OptimizerSection, device_type: str, sharding_types: Collection[str], table_precision: str
) -> None:
    """Refuse what the tables' optimizer cannot do on a device, in tables of these sharding types.

    Raises:
        UserError: FBGEMM has no kernel for it, or it would mean one thing in some tables and another in others.
    """
    _check_decay(section)
    sharded = sorted(set(sharding_types) - {_REPLICATED})
    if sharded:
        _check_sharded(section, device_type, sharded[0], _REPLICATED in sharding_types)
    if _REPLICATED in sharding_types and section.sparse_weight_decay:
        raise UserError(
            f"optimizer.sparse_weight_decay is {section.sparse_weight_decay}, for looked-up rows only, which "
            "data-parallel tables do not know; leave data_parallel out of sharding.types, or use "
            "optimizer.table_weight_decay with nothing else in it"
        )
    if not sharded and table_precision != "fp32" and section.sparse != "sgd":
        raise UserError(
            f"model.table_precision is {table_precision} and the tables are data-parallel, where the moments of "
            f"{section.sparse} would be of that precision too; use fp32"
        )


def _check_decay(section: OptimizerSection) -> None:
    if section.sparse_weight_decay and section.table_weight_decay:
        raise UserError(
            "optimizer.sparse_weight_decay (looked-up rows) and optimizer.table_weight_decay (all rows) exclude each "
            "other; set one of them to 0"
        )
    if section.sparse_weight_decay and section.sparse != "rowwise_adagrad":
        raise UserError(
            f"optimizer.sparse_weight_decay is {section.sparse_weight_decay}, and FBGEMM's kernel of {section.sparse} "
            f"{'does not add it to the gradient' if section.sparse == 'adam' else 'ignores it'}; use optimizer.sparse "
            "rowwise_adagrad, or optimizer.table_weight_decay with data-parallel tables"
        )


def _check_sharded(section: OptimizerSection, device_type: str, kind: str, mixed: bool) -> None:
    way_out = "allow data_parallel only (--sharding.types data_parallel)"
    if section.sparse == "adam" and device_type == "cpu":
        raise UserError(
            f"optimizer.sparse is adam, which has no fused kernel on CPU for {kind} tables; {way_out}, use one of "
            f"{', '.join(_FUSED_ON_CPU)}, or a GPU (--runtime.device cuda)"
        )
    if section.sparse == "adam" and mixed:
        raise UserError(
            f"optimizer.sparse is adam, which moves all rows of data_parallel tables and only looked-up ones of {kind} "
            "tables; leave data_parallel out of sharding.types, or allow it alone"
        )
    if section.table_weight_decay:
        raise UserError(
            f"optimizer.table_weight_decay is {section.table_weight_decay}, for all rows in every step, and the fused "
            f"kernels of {kind} tables touch looked-up rows only; {way_out}, or use optimizer.sparse_weight_decay"
        )


def clipping(section: OptimizerSection, sharding_types: Sequence[str]) -> list[str]:
    """A line that says what clipping covers, if there is any, from each table's sharding type."""
    if section.clip_norm is None:
        return []
    replicated = sum(kind == _REPLICATED for kind in sharding_types)
    return [
        f"clipping to norm {section.clip_norm:g} covers the dense layers and {replicated} data-parallel tables; "
        f"{len(sharding_types) - replicated} tables are updated in the backward and escape it"
    ]


@dataclass(frozen=True)
class Optimizers:
    """The optimizers of a config's three kinds of parameters, each with a fresh dict: TorchRec changes what it gets."""

    section: OptimizerSection
    learning_rate: float
    """Where the section does not say another."""

    def fused(self) -> Optimizer:
        """Of the tables that are updated in the backward."""
        kind, arguments = _optimizer(self.section.sparse, self._sparse_rate, self.section.eps)
        if self.section.sparse_weight_decay:  # FBGEMM ignores it without a mode
            arguments.update(weight_decay=self.section.sparse_weight_decay, weight_decay_mode=WeightDecayMode.L2)
        return kind, arguments

    def replicated(self) -> Optimizer:
        """Of data-parallel tables."""
        return _unfused(self.section.sparse, self._sparse_rate, self.section.eps, self.section.table_weight_decay)

    def dense(self) -> Optimizer:
        """Of all that is no table."""
        given = self.section.dense_learning_rate
        rate = self.learning_rate if given is None else given
        return _unfused(self.section.dense, rate, self.section.eps, self.section.dense_weight_decay)

    @property
    def _sparse_rate(self) -> float:
        given = self.section.sparse_learning_rate
        return self.learning_rate if given is None else given


def _optimizer(name: str, learning_rate: float, eps: float) -> Optimizer:
    arguments: dict[str, Any] = {"lr": learning_rate}
    if name != "sgd":
        arguments["eps"] = eps
    return _CLASSES[name], arguments


def _unfused(name: str, learning_rate: float, eps: float, weight_decay: float) -> Optimizer:
    kind, arguments = _optimizer(name, learning_rate, eps)
    arguments["weight_decay"] = weight_decay
    if name == "adam":  # 32 million weights on two cores: 0.13 s a step, else 1.24
        arguments["fused"] = True
    return kind, arguments

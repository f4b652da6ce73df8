"""Distributed training of DLRM recommenders on click logs.

`dlrm_dist.Predictor` loads an export (`dlrm_dist.serving.predictor`); it is imported when it is asked for, as it needs
PyTorch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "Predictor":
        return import_module("dlrm_dist.serving.predictor").Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Distributed training of DLRM recommenders on click logs."""

__version__ = "0.1.0"

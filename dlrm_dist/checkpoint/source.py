"""Tensors of a checkpoint, sharded or not, read one at a time in one process."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from dlrm_dist.checkpoint import folder
from dlrm_dist.checkpoint.state import NOTES, RNG
from dlrm_dist.checkpoint.storage import Reader
from dlrm_dist.errors import UserError

INDEX = "model.safetensors.index.json"
"""The name that tools which read safetensors look for: which file has which tensor."""


@dataclass(frozen=True)
class Sharded:
    """A checkpoint that training wrote."""

    path: Path

    @cached_property
    def _metadata(self) -> dict[str, TensorStorageMetadata]:
        every = Reader(self.path).read_metadata().state_dict_metadata
        return {
            key: value
            for key, value in every.items()
            if isinstance(value, TensorStorageMetadata) and not key.startswith((RNG, NOTES))
        }

    @property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        """The whole size of each tensor."""
        return {key: tuple(value.size) for key, value in self._metadata.items()}

    def dtype(self, key: str) -> torch.dtype:
        """A tensor's element type."""
        return self._metadata[key].properties.dtype

    def parts(self, key: str) -> int:
        """The number of pieces that a tensor is written in."""
        return len(self._metadata[key].chunks)

    def read(self, key: str) -> Tensor:
        """A whole tensor."""
        value = torch.empty(self.sizes[key], dtype=self.dtype(key))
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as it is meant to be
                dcp.load({key: value}, storage_reader=Reader(self.path), no_dist=True)
        except (CheckpointException, OSError) as error:
            raise UserError(f"{self.path}: {key} cannot be read: {str(error).strip().splitlines()[-1]}") from None
        return value


@dataclass(frozen=True)
class Unsharded:
    """A folder of safetensors files that `dlrm-dist checkpoint unshard` wrote."""

    path: Path

    @cached_property
    def _files(self) -> dict[str, str]:
        try:
            files: dict[str, str] = json.loads((self.path / INDEX).read_text())["weight_map"]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{self.path / INDEX}: cannot be read: {error}; unshard the checkpoint again") from None
        if any(Path(name).name != name for name in files.values()):
            raise UserError(f"{self.path / INDEX}: points to files outside the folder; it is refused")
        return files

    @cached_property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        """The size of each tensor."""
        found = {}
        for key in self._files:
            with self._open(key) as file:
                found[key] = tuple(file.get_slice(key).get_shape())
        return found

    def dtype(self, key: str) -> torch.dtype:
        """A tensor's element type."""
        return self.read(key).dtype

    def parts(self, _key: str) -> int:
        """One: it is whole."""
        return 1

    def read(self, key: str) -> Tensor:
        """A tensor."""
        with self._open(key) as file:
            return file.get_tensor(key)

    def _open(self, key: str) -> safe_open:
        try:
            return safe_open(self.path / self._files[key], framework="pt")
        except (OSError, SafetensorError) as error:
            raise UserError(f"{self.path / self._files[key]}: cannot be read: {error}") from None


Source = Sharded | Unsharded


def has_checkpoint(path: Path) -> bool:
    """Whether there is a run, a checkpoint or an unsharded one, whole or not."""
    return (path / INDEX).is_file() or (path / "checkpoints").is_dir() or (path / folder.FACTS).is_file()


def open_source(path: Path) -> Source:
    """What lies at `path`: a run (its newest whole checkpoint), a checkpoint, or an unsharded one.

    Raises:
        UserError: nothing of these; a checkpoint is damaged.
    """
    if (path / INDEX).is_file():
        return Unsharded(path)
    if (path / "checkpoints").is_dir():
        for each in reversed(folder.complete_ones(path / "checkpoints")):
            if folder.damage_of(each) is None:
                return Sharded(each)
        raise UserError(f"{path}: the run has no complete checkpoint")
    if not has_checkpoint(path):
        raise UserError(
            f"{path}: no checkpoint here; name runs/NAME, runs/NAME/checkpoints/step_N, or a folder that dlrm-dist "
            "checkpoint unshard wrote"
        )
    damage = folder.damage_of(path)
    if damage:
        raise UserError(f"{path}: {damage}; use another checkpoint of the run")
    return Sharded(path)


def vocabulary_folder(source: Source) -> Path | None:
    """Where the vocabularies of a source's run lie, if it had any."""
    nearby: Sequence[Path] = (source.path, source.path.absolute().parent.parent)
    return next((each / "vocabulary" for each in nearby if (each / "vocabulary").is_dir()), None)

"""DCP's file storage, with checksums, a last step that makes the checkpoint complete, and no trust in pickles.

DCP's `.metadata` is a pickle. It is read by an unpickler that knows the few classes such a file is made of and refuses
every other name before anything runs; tensors are read with `weights_only`. So a checkpoint of unknown origin can be
wrong, but it cannot run code.
"""

import io
import pickle
from collections.abc import Callable
from pathlib import Path, PosixPath
from typing import Any, cast

import torch
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter, Metadata, SavePlan, SavePlanner
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, StorageMeta
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from dlrm_dist.checkpoint.folder import CHECKSUM, checksum
from dlrm_dist.errors import UserError

_DTYPES = {name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)}
_TRUSTED: dict[str, set[str]] = {
    "torch": {"Size", *_DTYPES},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "pathlib": {"Path", "PosixPath"},
    "collections": {"OrderedDict"},
}
"""Module and names that DCP's metadata is made of: records, whose construction has no side effect."""


class Writer(FileSystemWriter):
    """Writes under a temporary folder; each rank leaves the checksum of its file, and the coordinator completes.

    Args:
        temporary: the folder to write into.
        complete: called on the coordinator when every rank has written; it gives the checkpoint its name.
    """

    def __init__(self, temporary: Path, complete: Callable[[], None]) -> None:
        super().__init__(temporary)
        self._folder, self._complete = temporary, complete

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """As DCP's, and a checksum beside the rank's file."""
        done = super().write_data(plan, planner)
        done.wait()
        for path in self._folder.glob(f"{plan.storage_data.prefix}*"):
            path.with_name(path.name + CHECKSUM).write_text(checksum(path))
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """As DCP's, then the checkpoint is complete; on the coordinator."""
        super().finish(metadata, results)
        self._complete()


class Reader(FileSystemReader):
    """Reads a checkpoint whose `.metadata` need not be trusted."""

    def read_metadata(self, *_args: Any, **_kwargs: Any) -> Metadata:
        """The metadata.

        Raises:
            UserError: the file is missing, names something that does not belong there, or points out of the folder.
        """
        path = Path(self.path) / ".metadata"
        try:
            metadata = _Unpickler(io.BytesIO(path.read_bytes())).load()
            inside = all(_is_plain(info.relative_path) for info in metadata.storage_data.values())
        except (OSError, pickle.UnpicklingError, EOFError, AttributeError, ValueError, TypeError, IndexError) as error:
            raise UserError(f"{path}: cannot be read: {error}; use another checkpoint") from None
        if not inside:
            raise UserError(f"{path}: points to files outside the checkpoint; it is refused")
        metadata.storage_meta = getattr(metadata, "storage_meta", None) or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return cast(Metadata, metadata)


class _Unpickler(pickle.Unpickler):
    """Knows the names of `_TRUSTED` only."""

    def find_class(self, module: str, name: str) -> Any:
        """The class of that name, if it is trusted.

        Python 3.11.0 to 3.11.3 name an enum's member by a getattr. What they get here is none: it knows the members of
        DCP's one enum, and nothing else.
        """
        if (module, name) == ("builtins", "getattr"):
            return _memory_format
        if name not in _TRUSTED.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which has no place in a checkpoint")
        return PosixPath if module == "pathlib" else super().find_class(module, name)


def _memory_format(owner: Any, name: Any) -> _MEM_FORMAT_ENCODING:
    """A member of DCP's enum of memory formats, by its name."""
    if owner is not _MEM_FORMAT_ENCODING or name not in _MEM_FORMAT_ENCODING.__members__:
        raise pickle.UnpicklingError(f"it takes {name!r} from {owner!r}, which has no place in a checkpoint")
    return _MEM_FORMAT_ENCODING[name]


def _is_plain(name: str) -> bool:
    return Path(name).name == name

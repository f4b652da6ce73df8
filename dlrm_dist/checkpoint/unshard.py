"""A checkpoint as safetensors files: whole tensors, one file a table, for any program that reads safetensors."""

import json
import shutil
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from dlrm_dist import progress
from dlrm_dist.checkpoint.folder import CONFIG
from dlrm_dist.checkpoint.source import INDEX, Sharded, vocabulary_folder
from dlrm_dist.checkpoint.state import MODEL
from dlrm_dist.errors import UserError

_TABLES = ".embedding_bags."


def unshard(source: Sharded, out: Path, with_optimizer: bool) -> int:
    """Write the weights, and the optimizer's state if asked to; memory for one table.

    Args:
        source: the checkpoint.
        out: the folder to make: one file a table, one for the rest, the index that says which tensor is where, and the
            vocabularies that its rows belong to.
        with_optimizer: also the optimizer's state.

    Returns:
        The number of tensors.

    Raises:
        UserError: `out` exists, or cannot be written.
    """
    keys = [key for key in source.sizes if with_optimizer or key.startswith(MODEL)]
    temporary = out.with_name(f".{out.name}.tmp")
    if out.exists():
        raise UserError(f"{out}: is there already; name a folder that does not exist")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        _write(source, keys, temporary)
        temporary.replace(out)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"{out}: cannot be written: {error.strerror}; nothing was left behind") from None
    return len(keys)


def _write(source: Sharded, keys: list[str], folder: Path) -> None:
    tables = [key for key in keys if _TABLES in key]
    rest: dict[str, Tensor] = {key: source.read(key) for key in keys if _TABLES not in key}
    files = dict.fromkeys(rest, "dense.safetensors")
    save_file(rest, folder / "dense.safetensors")
    for number, key in enumerate(progress.each(tables, "unshard", "tables")):
        files[key] = f"table-{number + 1:05d}-of-{len(tables):05d}.safetensors"
        save_file({key: source.read(key)}, folder / files[key])
    total = sum((folder / name).stat().st_size for name in set(files.values()))
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")
    if (source.path / CONFIG).is_file():
        shutil.copyfile(source.path / CONFIG, folder / CONFIG)
    vocabulary = vocabulary_folder(source)
    if vocabulary:
        shutil.copytree(vocabulary, folder / "vocabulary")

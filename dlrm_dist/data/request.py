"""What was asked of `prepare`: the same again finds the dataset, or goes on with what a killed process had done."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from dlrm_dist.data import files
from dlrm_dist.data.files import File
from dlrm_dist.data.schema import DatasetInfo, Input, read_info
from dlrm_dist.data.vocabulary import folder_of
from dlrm_dist.data.writer import Layout
from dlrm_dist.errors import UserError


class Request(NamedTuple):
    """What is made: how, in which layout, from which files."""

    transform: dict[str, Any]
    layout: Layout
    inputs: tuple[Input, ...]


def inputs_of(sources: Iterable[File], vocabulary: Path | None) -> tuple[Input, ...]:
    """The files that a dataset is made from: its sources, and those of a vocabulary.

    Raises:
        UserError: there is no folder of vocabularies.
    """
    return tuple((file.name, file.size, file.changed_ns) for file in [*sources, *_vocabulary_files(vocabulary)])


def _vocabulary_files(given: Path | None) -> list[File]:
    if given is None:
        return []
    if not given.is_dir():
        what = "is a file" if given.exists() else "no such folder"
        raise UserError(
            f"vocabulary: {given}: {what}; allowed: the folder of a dataset, or the folder `vocabulary` in it; name one"
        )
    return files.find(folder_of(given))


def made_before(out: Path, request: Request) -> DatasetInfo:
    """The dataset that is in `out` already.

    Raises:
        UserError: it was made in another way or from other files, or is no dataset.
    """
    try:
        found = read_info(out)
        reason = _difference(found, request)
    except UserError:
        reason = "and is no dataset"
    if reason:
        raise UserError(f"{out}: exists already, {reason}; allowed: a new folder; name another one or remove it")
    return found


def _difference(found: DatasetInfo, request: Request) -> str | None:
    wanted = json.loads(json.dumps(request.transform)) | request.layout._asdict()  # as it is read back
    have = found.transform | {"lanes": found.lanes, "group_rows": found.group_rows}
    other = next((key for key in sorted({*wanted, *have}) if wanted.get(key) != have.get(key)), None)
    if other:
        return f"with other {other}"
    if not found.inputs:
        return "and does not say from which files"
    new = next((each for each in request.inputs if each not in found.inputs), None)
    if new:
        return f"made before {new[0]} was changed"
    return None if request.inputs == found.inputs else "made from other files"

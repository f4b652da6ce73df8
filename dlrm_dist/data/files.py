"""The files that a user names: files, folders and globs, here or on any filesystem that PyArrow or fsspec opens."""

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import fsspec
import pyarrow as pa
from pyarrow import fs

from dlrm_dist.errors import UserError


@dataclass(frozen=True)
class File:
    """A file as it was found: its name for messages and records (without secrets), its bytes, when it was changed."""

    name: str
    size: int
    changed_ns: int
    filesystem: fs.FileSystem
    path: str

    def open(self) -> pa.NativeFile:
        """The file for reading, from any position."""
        return self.filesystem.open_input_file(self.path)


def find(given: str | Path) -> list[File]:
    """The file, the folder's files or the glob's files, by name with numbers by value: day_2 before day_10.

    Hidden files and subfolders of a folder are left out.

    Raises:
        UserError: there is none, or they cannot be listed.
    """
    text = os.fspath(given)
    shown = _without_secrets(text)
    try:
        system, path = _filesystem(text)
        found = _glob(system, path) if _is_glob(text) else [system.get_file_info(path)]
        infos = [info for each in found for info in _files(system, each)]
    except (OSError, ValueError, ImportError) as error:  # pyarrow's own errors derive from the first two
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"{shown}: cannot be read: {reason}; allowed: readable files and folders; mend it") from None
    if not found or found[0].type not in (fs.FileType.File, fs.FileType.Directory):
        raise UserError(f"{shown}: no such file; allowed: files, folders of files, and globs; check the path")
    if not infos:
        raise UserError(f"{shown}: a folder without files; allowed: files or folders of files; name another one")
    prefix = shown.split("://")[0] + "://" if "://" in shown else ""
    found_files = [File(prefix + info.path, info.size, info.mtime_ns or 0, system, info.path) for info in infos]
    return sorted(found_files, key=_natural)


def check_distinct(files: list[File]) -> None:
    """Raise a UserError if a file is there twice."""
    seen: set[str] = set()
    for file in files:
        place = file.name if "://" in file.name else os.path.realpath(file.path)
        if place in seen:
            raise UserError(f"{file.name}: named twice; allowed: each file once, in one split; remove one of the two")
        seen.add(place)


def _filesystem(text: str) -> tuple[fs.FileSystem, str]:
    if "://" not in text:
        return fs.LocalFileSystem(), text
    try:
        return fs.FileSystem.from_uri(text)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # not one of PyArrow's own
        system, path = fsspec.url_to_fs(text)
        return fs.PyFileSystem(fs.FSSpecHandler(system)), path


def _is_glob(text: str) -> bool:
    magic = "*[" if "://" in text else "*?["
    return any(letter in text for letter in magic) and not Path(text).exists()


def _glob(system: fs.FileSystem, pattern: str) -> list[fs.FileInfo]:
    parts = PurePosixPath(pattern).parts
    fixed = next(number for number, part in enumerate(parts) if re.search(r"[*?\[]", part))
    base = str(PurePosixPath(*parts[:fixed])) if fixed else ""
    every = system.get_file_info(fs.FileSelector(base or ".", recursive=True, allow_not_found=True))
    paths = ((info, PurePosixPath(info.path)) for info in every)
    return [info for info, path in paths if len(path.parts) == len(parts) and path.match(pattern)]


def _files(system: fs.FileSystem, info: fs.FileInfo) -> list[fs.FileInfo]:
    if info.type == fs.FileType.File:
        return [info]
    if info.type != fs.FileType.Directory:
        return []
    inside = system.get_file_info(fs.FileSelector(info.path))
    return [each for each in inside if each.type == fs.FileType.File and not each.base_name.startswith(".")]


def _natural(file: File) -> list[tuple[int, str]]:
    return [(int(word), "") if word.isdigit() else (-1, word) for word in re.split(r"([0-9]+)", file.path)]


def _without_secrets(text: str) -> str:
    """A URL without its user, password and options, which may be keys."""
    return re.sub(r"://[^/@]*@", "://", text).split("?")[0] if "://" in text else text

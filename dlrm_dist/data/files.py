"""The files that a user names: files, folders and globs, here or on any filesystem that PyArrow or fsspec opens."""

import os
import re
from collections.abc import Hashable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem
from pyarrow import fs

from dlrm_dist.data.work_folder import place
from dlrm_dist.errors import UserError

_RETRY_SECONDS = 15
"""Google's storage is asked again for so long, not for 15 minutes, which is its own limit; others take seconds."""


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


def find(given: str | Path, out: Path | None = None) -> list[File]:
    """The file, the folder's files or the glob's files, by name with numbers by value: day_2 before day_10.

    Hidden files and subfolders of a folder are left out. In a glob, `*` stays within one folder's names, none of them
    hidden, and `**` stands for any folders; a folder that it matches gives its files. What is in `out`, where these
    files go to, or in its work folder, is left out too, but for a file named alone.

    Raises:
        UserError: there is none, or they cannot be listed.
    """
    text = os.fspath(given)
    shown = without_secrets(text)
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
    if out is not None and isinstance(system, fs.LocalFileSystem) and infos[0].path != path:
        infos = [info for info in infos if not _is_within(info.path, out)]
    prefix = shown.split("://")[0] + "://" if "://" in shown else ""
    found_files = [File(prefix + info.path, info.size, info.mtime_ns or 0, system, info.path) for info in infos]
    return sorted(found_files, key=_natural)


def find_below(given: str | Path) -> list[File]:
    """The file, the glob's files, or all files of the folder and of the folders in it, but for hidden ones.

    Raises:
        UserError: there is none, or they cannot be listed.
    """
    text = os.fspath(given)
    if _is_glob(text):
        return find(text)
    try:
        system, path = _filesystem(text)
        is_folder = system.get_file_info(path).type == fs.FileType.Directory
    except (OSError, ValueError, ImportError):
        is_folder = False
    return find(f"{text.rstrip('/')}/**" if is_folder else text)


def check_distinct(files: list[File]) -> None:
    """Raise a UserError if a file is there twice, by whatever name, link or URL."""
    seen: dict[Hashable, File] = {}
    for file in files:
        other = seen.setdefault(_identity(file), file)
        if other is not file:
            alias = "" if other.name == file.name else f" (also as {other.name})"
            raise UserError(
                f"{file.name}: named twice{alias}; allowed: each file once, in one split; remove one of the two"
            )


def _identity(file: File) -> Hashable:
    if not isinstance(file.filesystem, fs.LocalFileSystem):
        return file.name
    try:
        found = Path(file.path).stat()
    except OSError as error:
        raise UserError(f"{file.name}: cannot be read: {error.strerror}; allowed: readable files; mend it") from None
    return found.st_dev, found.st_ino


def _filesystem(text: str) -> tuple[fs.FileSystem, str]:
    if "://" not in text:
        return fs.LocalFileSystem(), text
    try:
        return fs.FileSystem.from_uri(_with_limit(text))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # not one of PyArrow's own
        system, path = fsspec.url_to_fs(text)
        if isinstance(system, LocalFileSystem):
            return fs.LocalFileSystem(), path
        return fs.PyFileSystem(fs.FSSpecHandler(system)), path


def _with_limit(url: str) -> str:
    """The URL; one of Google's storage with a limit to its retries, if it has none."""
    if not url.startswith(("gs://", "gcs://")) or "retry_limit_seconds=" in url:
        return url
    return f"{url}{'&' if '?' in url else '?'}retry_limit_seconds={_RETRY_SECONDS}"


def _is_glob(text: str) -> bool:
    magic = "*[" if "://" in text else "*?["
    return any(letter in text for letter in magic) and not Path(text).exists()


def _glob(system: fs.FileSystem, pattern: str) -> list[fs.FileInfo]:
    parts = PurePosixPath(pattern).parts
    fixed = next(number for number, part in enumerate(parts) if re.search(r"[*?\[]", part))
    found = [system.get_file_info(str(PurePosixPath(*parts[:fixed])))]
    for part in parts[fixed:]:
        inside = [info for each in found for info in _matching(system, each, part)]
        found = list({info.path: info for info in inside}.values())
    return found


def _matching(system: fs.FileSystem, folder: fs.FileInfo, part: str) -> list[fs.FileInfo]:
    """What a part of a glob matches in a folder; `**`: the folder, and all folders in it."""
    if folder.type != fs.FileType.Directory:
        return []
    inside = system.get_file_info(fs.FileSelector(folder.path))
    inside = [each for each in inside if part.startswith(".") or not each.base_name.startswith(".")]
    if part != "**":
        return [each for each in inside if fnmatchcase(each.base_name, part)]
    return [folder, *(deeper for each in inside for deeper in _matching(system, each, part))]


def _is_within(file: str, out: Path) -> bool:
    """Whether a file lies in the folder `out`, or in the one in which that is made."""
    path = Path(os.path.realpath(file))
    return any(path.is_relative_to(os.path.realpath(folder)) for folder in (out, place(out)))


def _files(system: fs.FileSystem, info: fs.FileInfo) -> list[fs.FileInfo]:
    if info.type == fs.FileType.File:
        return [info]
    if info.type != fs.FileType.Directory:
        return []
    inside = system.get_file_info(fs.FileSelector(info.path))
    return [each for each in inside if each.type == fs.FileType.File and not each.base_name.startswith(".")]


def _natural(file: File) -> list[tuple[int, str]]:
    return [(int(word), "") if word.isdigit() else (-1, word) for word in re.split(r"([0-9]+)", file.path)]


def without_secrets(text: str) -> str:
    """A URL without its user, password and options, which may be keys."""
    return re.sub(r"://[^/@]*@", "://", text).split("?")[0] if "://" in text else text

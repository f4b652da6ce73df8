"""Files of lines: cut into blocks of whole lines, which are counted once and then parsed in any order.

Block k of a file has the lines that start within its bytes [k * BLOCK_BYTES, (k + 1) * BLOCK_BYTES), unpacked where
the file is a .gz. The fast path only says that a block is bad; a plain scan then finds and names the first bad line.
"""

import codecs
import itertools
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ClassVar, NamedTuple, Protocol

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dlrm_dist.data.files import File
from dlrm_dist.data.sources import BAD_ROWS, OnBadRow, Parsed, changed
from dlrm_dist.errors import UserError

BLOCK_BYTES = 8 << 20
LINE_BYTES = 1 << 20
"""A line that is longer is an error: the file is no text of lines, and must not be read into memory whole."""
_AHEAD = 4
"""Blocks of a .gz that are parsed while the next are unpacked."""


class Format(Protocol):
    """A way to write rows as lines."""

    name: ClassVar[str]
    any_row: ClassVar[bytes]
    """A good line, with its end."""

    def parse(self, text: bytes, rows: int) -> pa.Table:
        """`rows` lines as columns; a ValueError if one is bad."""

    def fault(self, line: bytes) -> str | None:
        """What is wrong with a line (without its end); None: nothing."""

    def mended(self, line: bytes, on_bad_row: OnBadRow, faults: Counter[str]) -> bytes | None:
        """The line without its faults, which are counted; None if it must be left out."""


class Counted(NamedTuple):
    """Of each block of a file: the lines that start in it, and the byte of the text at which the first does."""

    lines: list[int]
    starts: list[int]


class Block(NamedTuple):
    """Whole lines of one file; `first_line` counts from 1."""

    file: str
    first_line: int
    text: bytes
    lines: int


class TextSource:
    """One file of lines in some format; see `sources.Source`."""

    def __init__(self, file: File, form: Format, on_bad_row: OnBadRow, counted: Counted) -> None:
        """Take the file and what `count` gave for it."""
        self.name, self.seekable = file.name, not _is_packed(file)
        self._file, self._form, self._on_bad_row, self._counts = file, form, on_bad_row, counted.lines
        self._starts = np.concatenate([[0], np.cumsum(counted.lines, dtype=np.int64)])
        filled = [number for number, lines in enumerate(counted.lines) if lines]
        bytes_ = [*(counted.starts[number] for number in filled), file.size]
        self._bytes = dict(zip(filled, itertools.pairwise(bytes_), strict=True))
        """First and last (exclusive) byte of each block that has a line, where the file is not packed."""
        self.rows = int(self._starts[-1])

    def read(self, bounds: Sequence[int]) -> Iterator[Parsed]:
        """See `sources.Source`."""
        blocks = (piece for block in self.blocks(bounds[0], bounds[-1]) for piece in _cut(block, bounds))
        if self.seekable:
            yield from map(self.parse, blocks)
            return
        with ThreadPoolExecutor(2, thread_name_prefix="parse") as pool:
            ahead: deque[Future[Parsed]] = deque()
            for block in blocks:
                ahead.append(pool.submit(self.parse, block))
                if len(ahead) > _AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def blocks(self, start: int, stop: int) -> Iterator[Block]:
        """The blocks with the lines `start` to `stop` (exclusive, counted from 0).

        Raises:
            UserError: the file cannot be read, a line is longer than `LINE_BYTES`, or the file is not what was counted.
        """
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        last = int(np.searchsorted(self._starts, stop, side="left"))
        return self._direct_blocks(first, last) if self.seekable else self._unpacked_blocks(first, last)

    def _direct_blocks(self, first: int, last: int) -> Iterator[Block]:
        start = 0
        try:
            with self._file.open() as stream:
                if stream.size() != self._file.size:
                    raise changed(self.name)
                for number in filter(self._bytes.__contains__, range(first, last)):
                    start, stop = self._bytes[number]
                    if stop - start > BLOCK_BYTES + LINE_BYTES:  # its last line must be longer than any may be
                        raise self._too_long(int(self._starts[number + 1]))
                    stream.seek(start)
                    text = _read(stream, stop - start)
                    if len(text) < stop - start:
                        raise changed(self.name)
                    yield self._block(number, text)
        except (OSError, pa.ArrowInvalid) as error:
            raise _unreadable(self._file, start, error) from None

    def _unpacked_blocks(self, first: int, last: int) -> Iterator[Block]:
        begun, text = first, b""
        for number, (before, chunk) in enumerate(_chunks(self._file, first), first):
            start_at = 0 if before == b"\n" else chunk.find(b"\n") + 1 or len(chunk)
            if number > first:  # else it is the end of the block before
                text += chunk[:start_at]
            if text and before != b"\n" and not text.endswith(b"\n") and len(text) <= BLOCK_BYTES + LINE_BYTES:
                continue
            if text:
                yield self._block(begun, text)
            if number >= last:
                return
            begun, text = number, chunk[start_at:]
        if text:
            yield self._block(begun, text)
        if (begun + 1 if text else begun) < last and any(self._counts[begun + 1 : last]):
            raise changed(self.name)

    def _block(self, number: int, text: bytes) -> Block:
        line = int(self._starts[number]) + 1
        if _longest(text) > LINE_BYTES:
            raise self._too_long(line + next(i for i, each in enumerate(text.split(b"\n")) if len(each) > LINE_BYTES))
        lines = _newlines(text) + (not text.endswith(b"\n"))
        if lines != self._counts[number]:
            raise changed(self.name)
        return Block(self.name, line, text, lines)

    def _too_long(self, line: int) -> UserError:
        return UserError(
            f"{self.name}:{line}: line of more than {LINE_BYTES} bytes; allowed: one row a line, lines ending in LF or "
            "CRLF; convert the file to text lines"
        )

    def parse(self, block: Block) -> Parsed:
        """A block's rows as columns, after doing with bad ones as `on_bad_row` says.

        Raises:
            UserError: a bad row, named by file, line and column, with `on_bad_row` "error".
        """
        try:
            return Parsed(self._form.parse(block.text, block.lines), block.lines)
        except ValueError as error:  # pyarrow's errors derive from it
            lines = [line.removesuffix(b"\r") for line in block.text.removesuffix(b"\n").split(b"\n")]
            if self._on_bad_row == "error":
                raise self._explained(block, lines, error) from None
        faults: Counter[str] = Counter()
        mended = [(i, self._mended(line, faults)) for i, line in enumerate(lines)]
        good = [(i, line) for i, line in mended if line is not None]
        text = b"".join(line + b"\n" for _, line in good) or self._form.any_row
        table = self._form.parse(text, len(good) or 1).slice(0, len(good))
        return Parsed(table, len(lines), np.array([i for i, _ in good], np.int64), faults)

    def _mended(self, line: bytes, faults: Counter[str]) -> bytes | None:
        """The line without its faults, which are counted; None if it must be left out."""
        found: Counter[str] = Counter()
        if line.startswith(codecs.BOM_UTF8):  # the row behind it may be good
            found["byte-order mark"] = 1
        mended = self._form.mended(line.removeprefix(codecs.BOM_UTF8), self._on_bad_row, found)
        faults.update(found)
        faults[BAD_ROWS] += bool(found)
        return mended

    def _explained(self, block: Block, lines: list[bytes], error: ValueError) -> UserError:
        """The error for the first bad line of a block that the fast path refused."""
        for number, line in enumerate(lines, block.first_line):
            fault = self._form.fault(line)
            if line.startswith(codecs.BOM_UTF8):
                fault = "a byte-order mark before the row; allowed: rows alone, or on_bad_row skip, which ignores it"
            if fault:
                return UserError(f"{self.name}:{number}: {fault}; mend or remove the line")
        where = f"{self.name}: lines {block.first_line} to {block.first_line + len(lines) - 1}"
        allowed = f"allowed: rows in format {self._form.name}"
        return UserError(f"{where}: {str(error).splitlines()[0]}; {allowed}; mend or remove the line")


def count(file: File) -> Counted:
    """Count a file's lines; a last line without its newline counts.

    Raises:
        UserError: the file cannot be read, or it is empty.
    """
    counted = Counted([], [])
    for number, (before, chunk) in enumerate(_chunks(file, 0)):
        counted.lines.append((before == b"\n") + _newlines(chunk[:-1]))
        counted.starts.append(number * BLOCK_BYTES + (0 if before == b"\n" else chunk.find(b"\n") + 1))
    if not counted.lines:
        raise UserError(
            f"{file.name}: is empty; allowed: at least one row; remove it from the sources or fetch it again"
        )
    return counted


def _is_packed(file: File) -> bool:
    return file.path.endswith(".gz")


def _chunks(file: File, first: int) -> Iterator[tuple[bytes, bytes]]:
    """The text of a file from block `first` on, BLOCK_BYTES at a time, each with the byte before it."""
    done, skip, before = 0, first * BLOCK_BYTES, b"\n"
    try:
        with file.open() as stream:
            if not _is_packed(file) and first:
                stream.seek(skip - 1)
                before, skip = stream.read(1), 0
            text = pa.CompressedInputStream(stream, "gzip") if _is_packed(file) else stream
            while chunk := _read(text, BLOCK_BYTES):
                done += len(chunk)
                if skip:
                    skip -= BLOCK_BYTES
                else:
                    yield before, chunk
                before = chunk[-1:]
    except (OSError, pa.ArrowInvalid) as error:
        raise _unreadable(file, done, error) from None


def _unreadable(file: File, done: int, error: Exception) -> UserError:
    reason = str(error).splitlines()[0].rstrip(". ")
    return UserError(
        f"{file.name}: cannot be read beyond its first {done} bytes of text: {reason}; allowed: a readable text file, "
        "or a complete gzip file with a name in .gz; fetch it again"
    )


def _read(stream: pa.NativeFile, size: int) -> bytes:
    """The next `size` bytes; fewer at the end only."""
    parts, have = [], 0
    while have < size and (part := stream.read(size - have)):
        parts.append(part)
        have += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _newlines(text: bytes) -> int:
    """How many there are; bytes.count holds up the other threads, 0.25 s a million rows."""
    return _count(np.frombuffer(text, np.uint8)) if text else 0


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _count(text: npt.NDArray[np.uint8]) -> int:
    """Newlines in bytes [n], without the array of n flags that NumPy makes."""
    found = 0
    for byte in text:
        found += byte == 10
    return found


def _ends(text: bytes) -> npt.NDArray[np.bool_]:
    return np.frombuffer(text, np.uint8) == 10


def _longest(text: bytes) -> int:
    """The longest line's bytes, where one may be too long; else 0."""
    if len(text) <= LINE_BYTES:
        return 0
    return int(np.diff(np.flatnonzero(_ends(text)), prepend=-1, append=len(text)).max()) - 1


def _cut(block: Block, bounds: Sequence[int]) -> Iterator[Block]:
    """The block's lines within the bounds (line numbers from 0), in pieces that do not reach over one."""
    first = block.first_line - 1
    cuts = sorted({min(max(bound - first, 0), block.lines) for bound in bounds})
    if cuts == [0, block.lines]:
        yield block
        return
    ends = np.concatenate([[0], np.flatnonzero(_ends(block.text)) + 1, [len(block.text)]])
    for start, stop in itertools.pairwise(cuts):
        text = block.text[ends[start] : ends[stop] if stop < block.lines else None]
        yield Block(block.file, block.first_line + start, text, stop - start)

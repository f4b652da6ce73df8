"""Raw click logs as columns: blocks of whole lines, each parsed at once.

Two formats: `kaggle` (tab-separated: label, 13 integers, 26 hexadecimal categories) and `slot` (tokens `name:value`).
The fast path only says that a block is bad; the first bad line is then found, and named, by a plain scan of that block.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dlrm_dist.data import kaggle
from dlrm_dist.data.kaggle import CATEGORIES, DENSE, Dense, shown
from dlrm_dist.data.schema import LABEL
from dlrm_dist.errors import UserError

Format = Literal["kaggle", "slot"]
OnBadRow = Literal["error", "skip", "null"]
"""What becomes of a bad row: it ends the work, it is left out, or its bad fields become missing values."""
SLOT_ROWS = 1_000_001
BLOCK_BYTES = 8 << 20
LINE_BYTES = 1 << 20
"""A line that is longer is an error: the file is no text of lines, and must not be read into memory whole."""


class Block(NamedTuple):
    """Whole lines of one file; `first_line` counts from 1."""

    path: Path
    first_line: int
    text: bytes


def _chunks(path: Path, size: int) -> Iterator[bytes]:
    """The bytes of a file, unpacked where its name ends with .gz, at most `size` at a time."""
    compression = "gzip" if path.suffix == ".gz" else None
    done = 0
    try:
        with pa.input_stream(str(path), compression=compression) as stream:
            while chunk := stream.read(size):
                done += len(chunk)
                yield chunk
    except (OSError, pa.ArrowInvalid) as error:
        reason = str(error).splitlines()[0].rstrip(". ")
        raise UserError(
            f"{path}: cannot be read beyond its first {done} bytes of text: {reason}; allowed: a readable text file, "
            "or a complete gzip file with a name in .gz; fetch it again"
        ) from None


def count_rows(path: Path) -> int:
    """Rows (lines) of a file; a last line without its newline counts.

    Raises:
        UserError: the file cannot be read, or it is empty.
    """
    rows, last = 0, b"\n"
    for chunk in _chunks(path, BLOCK_BYTES):
        rows += _count_newlines(chunk)
        last = chunk[-1:]
    rows += last != b"\n"
    if not rows:
        raise UserError(f"{path}: is empty; allowed: at least one row; remove it from the sources or fetch it again")
    return rows


def _count_newlines(text: bytes) -> int:
    """Lines that end in `text`; bytes.count holds up the other threads, 0.25 s a million rows."""
    return int(np.count_nonzero(np.frombuffer(text, np.uint8) == 10))


def read_blocks(path: Path) -> Iterator[Block]:
    """A file's blocks of about `BLOCK_BYTES`, in order.

    Raises:
        UserError: the file cannot be read, or a line is longer than `LINE_BYTES`.
    """
    line, rest = 1, b""
    for chunk in _chunks(path, BLOCK_BYTES):
        cut = chunk.rfind(b"\n") + 1
        if cut:
            text = rest + chunk[:cut]
            yield Block(path, line, text)
            line += _count_newlines(text)
            rest = b""
        rest += chunk[cut:]
        if len(rest) > LINE_BYTES:
            raise UserError(
                f"{path}:{line}: line of more than {LINE_BYTES} bytes; allowed: one row a line, lines ending in LF or "
                "CRLF; convert the file to text lines"
            )
    if rest:
        yield Block(path, line, rest)


class Parsed(NamedTuple):
    """Rows of a piece of a file, of which bad ones may have been left out.

    Attributes:
        table: what `parse` gives.
        lines: lines of the piece.
        kept: int64 [rows], the lines (from 0) that the rows come from; None: each line is a row.
        faults: what was wrong with bad rows: the column's name, or "columns" (their number), or "row" (format slot).
    """

    table: pa.Table
    lines: int
    kept: npt.NDArray[np.int64] | None
    faults: Counter[str]

    def cut(self, lines: int) -> "tuple[Parsed, Parsed | None]":
        """The rows of the first `lines` lines, and the others if there are more lines; without the faults."""
        if lines >= self.lines:
            return self, None
        rows = lines if self.kept is None else int(np.searchsorted(self.kept, lines))
        kept = (None, None) if self.kept is None else (self.kept[:rows], self.kept[rows:] - lines)
        first = Parsed(self.table.slice(0, rows), lines, kept[0], Counter())
        return first, Parsed(self.table.slice(rows), self.lines - lines, kept[1], Counter())


def parse_or_mend(block: Block, form: Format, dense: Dense, bins: bool, on_bad_row: OnBadRow) -> Parsed:
    """A block's rows as columns, after doing with bad ones as `on_bad_row` says; see `parse`.

    Raises:
        UserError: a bad row, with `on_bad_row` "error".
    """
    try:
        table = parse(block, form, dense, bins)
        return Parsed(table, table.num_rows, None, Counter())
    except UserError:
        if on_bad_row == "error":
            raise
    lines = [line.removesuffix(b"\r") for line in block.text.removesuffix(b"\n").split(b"\n")]
    faults: Counter[str] = Counter()
    mended = [(position, _mended(line, form, on_bad_row, faults)) for position, line in enumerate(lines)]
    good = [(position, line) for position, line in mended if line is not None]
    text = b"".join(line + b"\n" for _, line in good) or _ANY_ROW[form]
    table = parse(Block(block.path, block.first_line, text), form, dense, bins).slice(0, len(good))
    return Parsed(table, len(lines), np.array([position for position, _ in good], np.int64), faults)


_ANY_ROW = {"kaggle": b"0" + b"\t" * 39 + b"\n", "slot": b"click:0" + b" dense_feature:0" * 13 + b"\n"}


def _mended(line: bytes, form: Format, on_bad_row: OnBadRow, faults: Counter[str]) -> bytes | None:
    """The line without its faults, which are counted; None if it must be left out."""
    if form == "slot":
        bad = _slot_fault(line) is not None
        faults["row"] += bad
        return None if bad else line
    fields = line.split(b"\t")
    if len(fields) != len(kaggle.FIELDS):
        faults["columns"] += 1
        return None
    pairs = zip(fields, kaggle.FIELDS, strict=True)
    wrong = [i for i, (field, (_, pattern, _, _)) in enumerate(pairs) if not pattern.fullmatch(field)]
    faults.update(kaggle.FIELDS[i][0] for i in wrong)
    if wrong and (on_bad_row == "skip" or wrong[0] == 0):  # the label has no missing value
        return None
    return b"\t".join(b"" if i in wrong else field for i, field in enumerate(fields))


def parse(block: Block, form: Format, dense: Dense, bins: bool = False) -> pa.Table:
    """A block's rows as columns: label uint8; I1..I13 float32; C1..C26 uint32, null where missing (slot: int32 ids).

    With `bins` also B1..B13, uint32, null where missing.

    Raises:
        UserError: a bad row, named by file, line and column.
    """
    try:
        lines = _count_newlines(block.text) + (not block.text.endswith(b"\n"))
        table = kaggle.parse(block.text, lines, dense, bins) if form == "kaggle" else _parse_slot(block.text)
        if table.num_rows != lines:
            raise ValueError(f"{table.num_rows} rows in {lines} lines")
    except ValueError as error:  # pyarrow's errors derive from it
        raise _explain(block, form, error) from None
    return table


def _parse_slot(text: bytes) -> pa.Table:
    ends = np.flatnonzero(np.frombuffer(text, np.uint8) == 10) + 1
    offsets = np.concatenate([[0], ends, [len(text)] if not text.endswith(b"\n") else []]).astype(np.int32)
    rows = len(offsets) - 1
    lines = pa.StringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(text))
    words = pc.ascii_split_whitespace(pc.ascii_trim_whitespace(lines))
    row = pc.list_parent_indices(words).to_numpy()
    pairs = pc.split_pattern(words.flatten(), ":", max_splits=1)
    if b"x" in text or b"X" in text or np.any(pc.list_value_length(pairs).to_numpy() != 2):
        raise ValueError("a token that is not name:value")
    flat, even = pairs.flatten(), np.arange(0, 2 * len(row), 2)
    kind, values = _slot_kinds(flat.take(pa.array(even))), flat.take(pa.array(even + 1))

    def column(of: npt.NDArray[np.bool_], each: int, type_: pa.DataType) -> npt.NDArray[np.generic]:
        if not np.array_equal(row[of], np.repeat(np.arange(rows), each)):
            raise ValueError("a row without its label or 13 dense features")
        return pc.cast(values.filter(pa.array(of)), type_).to_numpy()

    label, dense = column(kind == -1, 1, pa.uint8()), column(kind == 0, len(DENSE), pa.float32())
    cell = (row * len(CATEGORIES) + kind - 1)[kind > 0]
    found = pc.cast(values.filter(pa.array(kind > 0)), pa.int64()).to_numpy()
    bad_id = np.any((found < 0) | (found >= SLOT_ROWS)) or np.bincount(cell, minlength=1).max() > 1
    if bad_id or np.any(label > np.uint8(1)) or not np.isfinite(dense).all():
        raise ValueError("a value out of range, or two ids in one slot")
    ids = np.zeros(rows * len(CATEGORIES), np.int32)
    ids[cell] = found
    columns = [label, *dense.reshape(rows, -1).T.copy(), *ids.reshape(rows, -1).T.copy()]
    return pa.table([pa.array(values) for values in columns], names=[LABEL, *DENSE, *CATEGORIES])


def _slot_kinds(names: pa.StringArray) -> npt.NDArray[np.int64]:
    """Token names [n] as numbers int64 [n]: -1 label, 0 dense, 1 to 26 the slot."""
    known = {"click": -1, "dense_feature": 0} | {str(slot): slot for slot in range(1, len(CATEGORIES) + 1)}
    encoded = names.dictionary_encode()
    kinds = [known.get(name) for name in encoded.dictionary.to_pylist()]
    if None in kinds:
        raise ValueError("a token with an unknown name")
    return np.array(kinds, np.int64)[encoded.indices.to_numpy()]


def _explain(block: Block, form: Format, error: ValueError) -> UserError:
    """The error for the first bad line of a block that the fast path refused."""
    fault_of = kaggle.fault if form == "kaggle" else _slot_fault
    lines = block.text.removesuffix(b"\n").split(b"\n")
    for number, line in enumerate(lines, block.first_line):
        if fault := fault_of(line.removesuffix(b"\r")):
            return UserError(f"{block.path}:{number}: {fault}; mend or remove the line")
    where = f"{block.path}: lines {block.first_line} to {block.first_line + len(lines) - 1}"
    return UserError(f"{where}: {str(error).splitlines()[0]}; allowed: rows in format {form}; mend or remove the line")


_FLOAT_MAX = float(np.finfo(np.float32).max)
_SLOT_TOKEN = re.compile(
    rb"(?P<click>click:[01])|(?P<dense>dense_feature:(?P<number>[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?))"
    rb"|(?P<slot>[1-9]|1[0-9]|2[0-6]):(?P<id>[0-9]{1,18})"
)


def _slot_fault(line: bytes) -> str | None:
    seen: Counter[str] = Counter()
    for position, token in enumerate(line.split(), 1):
        match = _SLOT_TOKEN.fullmatch(token)
        if not match or int(match["id"] or 0) >= SLOT_ROWS or abs(float(match["number"] or 0)) > _FLOAT_MAX:
            return (
                f"token {position}: {shown(token)} is no feature; allowed: click:0, click:1, dense_feature:NUMBER, "
                f"SLOT:ID with slots 1 to 26 and ids 0 to {SLOT_ROWS - 1}"
            )
        seen["click" if match["click"] else "dense_feature" if match["dense"] else match["slot"].decode()] += 1
    for name, allowed in (("click", 1), ("dense_feature", len(DENSE))):
        if (tokens := seen.pop(name, 0)) != allowed:
            return f"{tokens} {name} tokens; allowed: exactly {allowed}"
    twice = next((slot for slot, ids in seen.items() if ids > 1), None)
    return (
        twice and f"slot {twice} has {seen[twice]} ids: multi-hot slots are not supported yet; allowed: one id a slot"
    )

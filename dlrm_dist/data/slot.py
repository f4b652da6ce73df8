"""PaddleRec's slot text: tokens `name:value`: `click`, 13 times `dense_feature`, slots 1 to 26 with one id each.

Its dense values are scaled and its ids hashed already, into one space that all slots share.
"""

import re
from collections import Counter
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dlrm_dist.data.kaggle import CATEGORIES, DENSE, shown
from dlrm_dist.data.schema import LABEL
from dlrm_dist.data.sources import OnBadRow

SLOT_ROWS = 1_000_001
_FLOAT_MAX = float(np.finfo(np.float32).max)
_SLOT_TOKEN = re.compile(
    rb"(?P<click>click:[01])|(?P<dense>dense_feature:(?P<number>[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?))"
    rb"|(?P<slot>[1-9]|1[0-9]|2[0-6]):(?P<id>[0-9]{1,18})"
)


class Slot:
    """The format."""

    name: ClassVar[str] = "slot"
    any_row: ClassVar[bytes] = b"click:0" + b" dense_feature:0" * 13 + b"\n"

    def parse(self, text: bytes, rows: int) -> pa.Table:
        """`rows` lines as columns: label uint8; I1..I13 float32; C1..C26 int32, 0 where missing.

        Raises:
            ValueError: a line is bad.
        """
        ends = np.flatnonzero(np.frombuffer(text, np.uint8) == 10) + 1
        offsets = np.concatenate([[0], ends, [len(text)] if not text.endswith(b"\n") else []]).astype(np.int32)
        if len(offsets) - 1 != rows:
            raise ValueError(f"{len(offsets) - 1} rows in {rows} lines")
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

    def fault(self, line: bytes) -> str | None:
        """What is wrong with a line (without its end); None: nothing."""
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
        return twice and f"slot {twice} has {seen[twice]} ids; allowed: one id a slot"

    def mended(self, line: bytes, on_bad_row: OnBadRow, faults: Counter[str]) -> bytes | None:
        """The line, or None where it is bad, which is counted: nothing in it can be missing."""
        if self.fault(line) is None:
            return line
        faults["row"] += 1
        return None


def _slot_kinds(names: pa.StringArray) -> npt.NDArray[np.int64]:
    """Token names [n] as numbers int64 [n]: -1 label, 0 dense, 1 to 26 the slot."""
    known = {"click": -1, "dense_feature": 0} | {str(slot): slot for slot in range(1, len(CATEGORIES) + 1)}
    encoded = names.dictionary_encode()
    kinds = [known.get(name) for name in encoded.dictionary.to_pylist()]
    if None in kinds:
        raise ValueError("a token with an unknown name")
    return np.array(kinds, np.int64)[encoded.indices.to_numpy()]

"""Raw rows, whatever the format: a log is a sequence of sources, each of which reads any range of its rows."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dlrm_dist.data.schema import RAW_IDS
from dlrm_dist.errors import UserError

OnBadRow = Literal["error", "skip", "null"]
"""What becomes of a bad row: it ends the work, it is left out, or its bad fields become missing values."""
Ids = Literal["hash", "vocabulary", "keep", "raw"]
BAD_ROWS = "bad rows"
"""Among the counts of what was wrong: how many rows it was wrong with. No column can have this name."""


class Column(NamedTuple):
    """A categorical column, and how its raw values become ids.

    Attributes:
        name: of the column.
        ids: "hash" (modulo `rows`), "vocabulary" (of the values seen `min_count` times in training rows), "keep"
            (the values are ids below `rows` already), or "raw" (no table bounds them: modulo `rows`, 2^63 - 1).
        rows: ids of a hashed, kept or raw column.
        min_count: of a vocabulary.
        missing: the number that a missing value counts as before the hash, one that no value has.
        multi_hot: whether it has a list of values a row.
    """

    name: str
    ids: Ids
    rows: int = 0
    min_count: int = 1
    missing: int = 1 << 32
    multi_hot: bool = False


def ids_of(names: Sequence[str], ids: Ids, raw: Sequence[str]) -> dict[str, Ids]:
    """How each column gets its ids: those that are named in `raw` are, the others as `ids` says.

    Raises:
        UserError: `raw` names a column that is none.
    """
    unknown = next((name for name in raw if name not in names), None)
    if unknown is not None:
        raise UserError(f"raw: there is no category {unknown}; allowed: {names[0]} to {names[-1]}; name these only")
    return {name: "raw" if name in raw else ids for name in names}


def hash_rows_of(names: Sequence[str], rows: int | tuple[int, ...]) -> list[int]:
    """The rows of each column's hash.

    Raises:
        UserError: there is neither one number nor one for each column.
    """
    if isinstance(rows, int):
        return [rows] * len(names)
    if len(rows) != len(names):
        raise UserError(
            f"hash_rows: has {len(rows)} numbers for {len(names)} categories; allowed: one, or one for each"
        )
    return list(rows)


def rows_of(ids: Ids, rows: int) -> int:
    """The number of ids of a column: `rows`, but for raw ones."""
    return RAW_IDS if ids == "raw" else rows


class Columns(NamedTuple):
    """What a source's rows have besides the label."""

    dense: tuple[str, ...]
    categories: tuple[Column, ...]
    weight: str | None = None


class Parsed(NamedTuple):
    """Consecutive rows of a source, of which bad ones may have been left out.

    Attributes:
        table: label uint8; dense float32; categories uint32 or uint64, null where missing (a list column has no
            nulls), or int32 or int64 where they are ids; the weight float32.
        lines: rows of the source, bad ones too.
        kept: int64 [rows of the table], the lines (from 0) that they come from; None: each line is a row.
        faults: what was wrong with bad rows: the column's name, or "columns" (their number), "row" (format slot),
            "header line" or "byte-order mark"; and `BAD_ROWS`.
    """

    table: pa.Table
    lines: int
    kept: npt.NDArray[np.int64] | None = None
    faults: Counter[str] | None = None


class Source(Protocol):
    """Some rows, in one file or a few that belong together."""

    name: str
    rows: int
    """Bad ones too."""
    seekable: bool
    """Whether a range in the middle costs no more than one at the start."""

    def read(self, bounds: Sequence[int]) -> Iterator[Parsed]:
        """The rows from `bounds[0]` to `bounds[-1]` in pieces, of which none reaches beyond the next bound."""


class Log:
    """All sources, one behind another: rows are numbered from 0 on over all of them."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._starts = np.concatenate([[0], np.cumsum([source.rows for source in sources], dtype=np.int64)]).tolist()

    def read(self, bounds: Sequence[int]) -> Iterator[Parsed]:
        """The rows from `bounds[0]` to `bounds[-1]` in pieces, of which none reaches beyond the next bound."""
        for source, start in zip(self._sources, self._starts, strict=False):
            local = sorted({min(max(bound - start, 0), source.rows) for bound in bounds})
            if len(local) > 1:
                yield from source.read(local)

    def ranges(self, rows: int) -> list[list[tuple[int, int]]]:
        """Ranges of at most `rows` rows; those of an inner list are best read one after another."""
        every: list[list[tuple[int, int]]] = []
        placed = zip(self._sources, itertools.pairwise(self._starts), strict=True)
        for seekable, run in itertools.groupby(placed, key=lambda each: each[0].seekable):
            spans = [span for _, span in run]
            if seekable:  # many small files share a range
                spans = [(spans[0][0], spans[-1][1])]
            for start, stop in spans:
                found = list(itertools.pairwise([*range(start, stop, rows), stop]))
                every += [[each] for each in found] if seekable else [found]
        return every

    @property
    def seekable(self) -> bool:
        """Whether any range can be read at once."""
        return all(source.seekable for source in self._sources)


def float32(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Numbers as float32: one that is too large becomes infinite, and so a bad value like those that were."""
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float32)


def changed(name: str) -> UserError:
    """The error that a file is not what it was."""
    return UserError(
        f"{name}: changed while it was read: it holds other rows than were counted; allowed: files that nothing writes "
        "to; prepare again"
    )


def judged(table: pa.Table, bad: dict[str, npt.NDArray[np.bool_]], on_bad_row: OnBadRow, where: "Where") -> Parsed:
    """Rows of columns that were judged already: bad ones are an error, are left out, or are mended.

    Args:
        table: the rows, fit to be kept where nothing is wrong with them but what may be missing.
        bad: by column, bool [rows]: where it has a bad value.
        on_bad_row: see there; columns that `where` does not call mendable are left out with "null" too.
        where: for the message, and what may be missing.

    Raises:
        UserError: a row is bad, with `on_bad_row` "error".
    """
    faults = Counter({name: int(count) for name, mask in bad.items() if (count := np.count_nonzero(mask))})
    if not faults:
        return Parsed(table, table.num_rows)
    if on_bad_row == "error":
        row, name = min((int(np.argmax(bad[name])), name) for name in faults)
        value, allowed = where.value(name, row), where.allowed[name]
        raise UserError(
            f"{where.file}: row {where.first_row + row + 1}: column {name}: {value} is not possible; allowed: {allowed}"
            "; mend or remove the row"
        )
    lost = [bad[name] for name in faults if on_bad_row == "skip" or name not in where.mendable]
    faults[BAD_ROWS] = int(np.count_nonzero(np.logical_or.reduce([*bad.values()])))
    kept = np.flatnonzero(~np.logical_or.reduce(lost)) if lost else np.arange(table.num_rows)
    return Parsed(table.take(pa.array(kept)), table.num_rows, kept, faults)


class Where(NamedTuple):
    """What a message about a bad row says, and what may be missing.

    Attributes:
        file: its name.
        first_row: the number of the first row judged, from 0.
        value: the value of a column in one of these rows, as text.
        allowed: what is, by column.
        mendable: columns whose bad values are missing ones in the table that was judged.
    """

    file: str
    first_row: int
    value: Callable[[str, int], str]
    allowed: dict[str, str]
    mendable: frozenset[str]

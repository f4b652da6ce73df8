"""The npy triples of TorchRec's own scripts: X_dense.npy, X_sparse.npy and X_labels.npy have the same rows.

TorchRec writes dense float32 [n, 13] (a logarithm already), sparse int32 or int64 [n, 26], 0 where missing, and labels
int32 [n, 1].
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dlrm_dist.data.files import File
from dlrm_dist.data.schema import LABEL
from dlrm_dist.data.sources import (
    Column,
    Columns,
    Ids,
    OnBadRow,
    Parsed,
    Where,
    changed,
    float32,
    hash_rows_of,
    ids_of,
    judged,
    rows_of,
)
from dlrm_dist.data.vocabulary import id_type
from dlrm_dist.errors import UserError

_KINDS = ("dense", "sparse", "labels")
_READ_ROWS = 1 << 16


class _Array(NamedTuple):
    """A file with an array [rows, columns] of `type`, whose numbers begin at byte `start`."""

    file: File
    rows: int
    columns: int
    type: np.dtype[Any]
    start: int

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows `start` to `stop`, [stop - start, columns], in this machine's byte order."""
        row = self.columns * self.type.itemsize
        try:
            with self.file.open() as stream:
                stream.seek(self.start + start * row)
                found = np.frombuffer(stream.read((stop - start) * row), self.type)
        except OSError as error:
            raise UserError(f"{self.file.name}: cannot be read: {error}; allowed: a complete .npy file") from None
        if len(found) != (stop - start) * self.columns:
            raise changed(self.file.name)
        return found.reshape(stop - start, self.columns).astype(self.type.newbyteorder("="), copy=False)


def _open(file: File) -> _Array:
    try:
        with file.open() as stream:
            version = np.lib.format.read_magic(stream)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, type_ = header(stream)
            start = stream.tell()
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{file.name}: cannot be read: {reason}; allowed: a complete .npy file; make it again"
        ) from None
    columns = shape[1] if len(shape) == 2 else 1
    if fortran or not 1 <= len(shape) <= 2 or type_.kind not in "iuf" or not shape[0]:
        order = " in Fortran order" if fortran else ""
        raise UserError(
            f"{file.name}: has {type_} {list(shape)}{order}; allowed: numbers [rows, columns], at least one row, in C "
            "order; make it again"
        )
    if file.size < start + shape[0] * columns * type_.itemsize:
        raise UserError(f"{file.name}: is shorter than it says; allowed: a complete .npy file; fetch it again")
    return _Array(file, shape[0], columns, type_, start)


class NpySource:
    """One triple; see `sources.Source`."""

    seekable = True

    def __init__(self, dense: _Array, sparse: _Array, labels: _Array, on_bad_row: OnBadRow) -> None:
        """Take arrays of equally many rows."""
        self.name, self.rows = sparse.file.name, sparse.rows
        self._dense, self._sparse, self._labels, self._on_bad_row = dense, sparse, labels, on_bad_row
        self.columns: Columns
        self.raw_type: type[np.unsignedinteger[Any]]
        """Of raw values: the same in all triples."""

    def largest(self) -> npt.NDArray[np.int64]:
        """The largest value of each sparse column, int64 [columns]."""
        cuts = [*range(0, self.rows, _READ_ROWS), self.rows]
        pieces = itertools.pairwise(cuts)
        return np.max([self._sparse.read(*piece).max(axis=0) for piece in pieces], axis=0)

    @property
    def is_wide(self) -> bool:
        """Whether the sparse values need 64 bits."""
        return self._sparse.type.itemsize > np.dtype(np.uint32).itemsize

    @property
    def widths(self) -> tuple[int, int]:
        """Dense and sparse columns."""
        return self._dense.columns, self._sparse.columns

    def read(self, bounds: Sequence[int]) -> Iterator[Parsed]:
        """See `sources.Source`."""
        cuts = sorted({*bounds, *range(bounds[0], bounds[-1], _READ_ROWS)})
        for start, stop in itertools.pairwise(cuts):
            yield self._piece(start, stop)

    def _piece(self, start: int, stop: int) -> Parsed:
        labels = self._labels.read(start, stop)[:, 0]
        numbers, sparse = self._dense.read(start, stop), self._sparse.read(start, stop)
        dense = float32(numbers)
        finite = np.isfinite(dense)
        bad = {LABEL: (labels != 0) & (labels != 1)}
        bad |= {name: ~finite[:, i] for i, name in enumerate(self.columns.dense)}
        kept = [column.ids == "keep" for column in self.columns.categories]
        bad |= {each.name: sparse[:, i] < 0 for i, each in enumerate(self.columns.categories) if kept[i]}
        clean = np.where(finite, dense, 0)
        columns = [pa.array((labels == 1).astype(np.uint8)), *(pa.array(clean[:, i]) for i in range(dense.shape[1]))]
        for i, column in enumerate(self.columns.categories):
            values = np.ascontiguousarray(sparse[:, i])
            ids = pa.array(values).cast(id_type(column.rows), safe=False) if kept[i] else pa.array(self._raw(values))
            columns.append(ids)
        names = [LABEL, *self.columns.dense, *(column.name for column in self.columns.categories)]
        values_of = {LABEL: labels} | dict(zip(names[1:], [*numbers.T, *sparse.T], strict=True))
        allowed = {LABEL: "0 or 1"} | dict.fromkeys(self.columns.dense, "finite numbers, as float32")
        allowed |= dict.fromkeys((column.name for column in self.columns.categories), "ids from 0 on")
        mendable = frozenset(self.columns.dense)
        where = Where(self.name, start, lambda name, row: str(values_of[name][row]), allowed, mendable)
        return judged(pa.Table.from_arrays(columns, names=names), bad, self._on_bad_row, where)

    def _raw(self, values: npt.NDArray[Any]) -> npt.NDArray[np.unsignedinteger[Any]]:
        """Values by their bits: negative ones are hexadecimal numbers with a leading 1."""
        return values.view(values.dtype.str.replace("i", "u")).astype(self.raw_type, copy=False)


def triples(files: Sequence[File], on_bad_row: OnBadRow) -> list[NpySource]:
    """The triples among files, in the order of their sparse ones.

    Raises:
        UserError: a file of a triple is missing, cannot be read or has other rows, or a file belongs to none.
    """
    named = {file.name: file for file in files}
    sources = []
    for name in [name for name in named if name.endswith("_sparse.npy")]:
        wanted = [name.removesuffix("sparse.npy") + f"{kind}.npy" for kind in _KINDS]
        missing = next((each for each in wanted if each not in named), None)
        if missing:
            raise UserError(f"{missing}: no such file; allowed: a triple X_dense.npy, X_sparse.npy, X_labels.npy")
        dense, sparse, labels = (_open(named.pop(each)) for each in wanted)
        if not dense.rows == sparse.rows == labels.rows:
            rows = f"{dense.rows}, {sparse.rows} and {labels.rows}"
            raise UserError(
                f"{name}: dense, sparse and labels have {rows} rows; allowed: equally many; make them again"
            )
        if sparse.type.kind == "f":
            raise UserError(f"{name}: has {sparse.type}; allowed: int32 or int64; make it again")
        sources.append(NpySource(dense, sparse, labels, on_bad_row))
    if named:
        raise UserError(
            f"{next(iter(named))}: belongs to no triple; allowed: X_dense.npy, X_sparse.npy, X_labels.npy; leave it out"
        )
    return sources


def columns_of(
    sources: Sequence[NpySource], ids: Ids, hash_rows: int | tuple[int, ...], min_count: int, raw: Sequence[str] = ()
) -> Columns:
    """The columns of all triples, which every source is told too; kept ids have a table up to the largest of all."""
    dense, sparse = sources[0].widths
    other = next((source for source in sources if source.widths != (dense, sparse)), None)
    if other:
        widths = f"{other.widths[0]} dense and {other.widths[1]} sparse columns where {sources[0].name} has"
        raise UserError(f"{other.name}: has {widths} {dense} and {sparse}; allowed: the same everywhere")
    names = [f"C{i}" for i in range(1, sparse + 1)]
    rows = hash_rows_of(names, hash_rows)
    if ids == "keep":
        rows = [max(1, int(top) + 1) for top in np.max([source.largest() for source in sources], axis=0)]
    how = ids_of(names, ids, raw)
    sizes = dict(zip(names, rows, strict=True))
    categories = (Column(name, how[name], rows_of(how[name], sizes[name]), min_count, 1 << 64) for name in names)
    columns = Columns(tuple(f"I{i}" for i in range(1, dense + 1)), tuple(categories))
    raw_type = np.uint64 if any(source.is_wide for source in sources) else np.uint32
    for source in sources:
        source.columns, source.raw_type = columns, raw_type
    return columns

"""Clicks with a planted, known signal: the law of the rows, and files of them in the Criteo Kaggle format.

A line is a label, 13 integers and 26 categories of 8 hex digits, separated by tabs; an empty field is a missing value.
All values are drawn independently: integers like counts (log-normal), ids from Zipf's law. The click's logit is

    bias + sum_j f_j(integer_j) + sum_c w_c[id_c] + sum_(a,b) <u_a[id_a], v_b[id_b]>

and the label is 1 with probability sigmoid(logit). The latent vectors u and v are centred under the ids' law: the last
sum has mean 0 given any one value, so no model that adds up one term per value can explain any of it. As the logit is
known, so is the best AUC that any model can reach on these rows, up to luck: the AUC of the logit itself.
"""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv

from dlrm_dist import cores, progress
from dlrm_dist.data.law import CATEGORIES, IntArray, Law
from dlrm_dist.errors import UserError

FloatArray = npt.NDArray[np.float32]

DEFAULT_ROWS = 1_200_000
"""Measured with 90 % for training: a DLRM with 16-dimensional embeddings comes to 0.003 to 0.004 below the best AUC
in 2 passes."""
CHUNK_ROWS = 100_000
"""Rows drawn and written at a time; part of the file's definition, as each chunk has its own random generator."""
INTEGERS = tuple(f"I{i}" for i in range(1, 14))
PAIR_STD, SINGLE_STD, INTEGER_STD = 0.58, 0.70, 0.25
"""Standard deviation, in the logit, of each pair's, each single category's and each of 3 integers' effects."""
RANK = 2
_MOST_EFFECTS = 2000
"""Of a carrier with more ids, so many of the most frequent have an effect: of the others nobody could learn it."""
CLICK_RATE = 0.26

_LOG_MEAN = np.linspace(0.5, 4.5, 13, dtype=np.float32)[:, None]
_LOG_STD = np.linspace(0.8, 1.4, 13, dtype=np.float32)[:, None]
_SHIFT = np.array([0, 3, 0, 1, 0, 0, 0, 1, 0, 0, 2, 0, 0], np.float32)[:, None]
_INTEGER_GAPS = np.array([0.4, 0, 0.2, 0.2, 0.03, 0.2, 0.04, 0, 0.04, 0.4, 0.04, 0.7, 0.2], np.float32)[:, None]
_SIGNAL_INTEGERS = slice(6, 9)
_AUC_RANGE, _AUC_BINS = 16.0, 1 << 18


@dataclass(frozen=True)
class Planted:
    """What was written: rows, both seeds, the share of clicks, and the AUC of the true logit on these very rows."""

    rows: int
    seed: int
    effects_seed: int
    click_rate: float
    best_auc: float


class PlantedModel:
    """The true model behind the clicks; it depends on `seed` and the law alone, so several files can share it."""

    def __init__(self, seed: int = 0, law: Law | None = None) -> None:
        rng = np.random.default_rng([seed, 1])
        self.law = law or Law()
        self.phases = rng.uniform(-0.5, 0.5, _LOG_MEAN[_SIGNAL_INTEGERS].shape).astype(np.float32)
        self.singles = {c: SINGLE_STD * self._standardised(rng, c, 1) for c in self.law.singles}
        self.pairs = {}
        for a, b in self.law.pairs:
            effects = self._standardised(rng, a, RANK) @ self._standardised(rng, b, RANK).T / np.sqrt(RANK)
            self.pairs[a, b] = PAIR_STD * effects
        self.bias = 0.0
        logits = self.logits(*draw_values(rng, CHUNK_ROWS, self.law))
        for _ in range(20):  # Newton's method for the click rate
            p = 1 / (1 + np.exp(-logits - self.bias))
            self.bias -= float((p.mean() - CLICK_RATE) / (p * (1 - p)).mean())

    def _standardised(self, rng: np.random.Generator, category: int, rank: int) -> FloatArray:
        """Random vectors (ids + 1, rank) of mean 0 and variance 1 under the ids' law; the last, for id -1, is 0."""
        law = self.law.shares(category, _MOST_EFFECTS)
        if self.law.cardinalities[category] > _MOST_EFFECTS:
            law = law / law.sum()
        vectors = rng.standard_normal((len(law), rank))
        if len(law) > 1:
            vectors -= law @ vectors
            vectors /= np.sqrt(law @ vectors**2)
        return np.vstack([vectors, np.zeros((1, rank))]).astype(np.float32)

    def draw(self, rng: np.random.Generator, rows: int) -> "Drawn":
        """Rows with their clicks."""
        integers, ids = draw_values(rng, rows, self.law)
        logits = self.logits(integers, ids)
        labels = rng.random(len(logits)) < 1 / (1 + np.exp(-logits.astype(np.float64)))
        return Drawn(labels, integers, ids, logits)

    def logits(self, integers: FloatArray, ids: IntArray) -> FloatArray:
        """The true logits of `integers` (13 x rows, NaN: missing) and `ids` (26 x rows, -1: missing), float32 (rows,).

        A missing or negative integer has the effect of a 0, a missing id none.
        """
        counts = np.fmax(integers[_SIGNAL_INTEGERS], 0)  # fmax(NaN, 0) is 0
        logs = (np.log1p(counts) - _LOG_MEAN[_SIGNAL_INTEGERS]) / _LOG_STD[_SIGNAL_INTEGERS]
        logits = self.bias + INTEGER_STD * 1.6 * np.tanh(logs + self.phases).sum(axis=0)
        for c, effects in self.singles.items():
            logits += effects[self._place(c, ids), 0]
        for (a, b), effects in self.pairs.items():
            logits += effects[self._place(a, ids), self._place(b, ids)]
        return logits.astype(np.float32)

    def _place(self, category: int, ids: IntArray) -> IntArray:
        """Where the effects of a category's ids stand; those without one have the last place, as a missing id has."""
        few = self.law.cardinalities[category] <= _MOST_EFFECTS
        return ids[category] if few else np.minimum(ids[category], np.int32(_MOST_EFFECTS))

    def raw_logits(self, table: pa.Table | pa.RecordBatch) -> FloatArray:
        """The true logits, float32 (rows,), of raw rows with columns I1 to I13 (integers) and C1 to C26 (hex digits).

        Raises:
            UserError: a category has a value that `write_clicks` never writes.
        """
        integers = np.stack([_numpy(table[name].cast(pa.float32()), np.nan) for name in INTEGERS])
        ids = np.empty((len(CATEGORIES), table.num_rows), np.int32)
        for c, name in enumerate(CATEGORIES):
            names = _hex_names(c, np.arange(self.law.cardinalities[c], dtype=np.int32))
            found = pc.index_in(table[name], value_set=names)
            filled = pc.sum(pc.greater(pc.utf8_length(table[name]), 0)).as_py() or 0
            if len(found) - found.null_count != filled:
                raise UserError(f"column {name}: holds values that were not planted; give clicks that `synth` wrote")
            ids[c] = _numpy(found, -1)
        return self.logits(integers, ids)


class Drawn(NamedTuple):
    """Labels bool (rows,), integers float32 (13 x rows), ids int32 (26 x rows), true logits float32 (rows,)."""

    labels: npt.NDArray[np.bool_]
    integers: FloatArray
    ids: IntArray
    logits: FloatArray


def draw_values(rng: np.random.Generator, rows: int, law: Law) -> tuple[FloatArray, IntArray]:
    """Draw integers, float32 (13 x rows) with NaN for missing, and ids, int32 (26 x rows) with -1 for missing."""
    integers = rng.standard_normal((len(INTEGERS), rows), np.float32)
    integers *= _LOG_STD
    integers += _LOG_MEAN
    np.floor(np.exp(integers, out=integers), out=integers)
    integers -= _SHIFT
    np.copyto(integers, np.nan, where=rng.random(integers.shape, np.float32) < _INTEGER_GAPS)
    return integers, law.draw(rng, rows)


_HEX = np.frombuffer("".join(f"{value:04x}" for value in range(1 << 16)).encode(), "<u4")
"""The four hex digits of each number of 16 bits."""


def _hex_names(category: int, ids: IntArray) -> pa.StringArray:
    """The 8 hex digits that stand for ids (rows,): a bijective mix (murmur3's) of category and id; null for id -1."""
    x = ids.astype(np.uint32) + np.uint32(category << 16)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    x ^= x >> np.uint32(16)
    text = np.stack([_HEX[x >> np.uint32(16)], _HEX[x & np.uint32(0xFFFF)]], axis=1)
    offsets = np.arange(0, 8 * len(ids) + 1, 8, dtype=np.int32)
    valid = pa.py_buffer(np.packbits(ids >= 0, bitorder="little"))
    return pa.StringArray.from_buffers(len(ids), pa.py_buffer(offsets), pa.py_buffer(text), valid)


class Auc:
    """AUC in bounded memory: scores fall into 2^18 bins over +-16; two in one bin count as a tie (error < 1e-5)."""

    def __init__(self) -> None:
        self.counts = np.zeros((2, _AUC_BINS), np.int64)

    def add(self, scores: FloatArray, labels: npt.NDArray[np.bool_]) -> None:
        """Count scores (rows,) with labels (rows,)."""
        bins = ((scores + _AUC_RANGE) * (_AUC_BINS / (2 * _AUC_RANGE))).astype(np.int64).clip(0, _AUC_BINS - 1)
        for label in (0, 1):
            self.counts[label] += np.bincount(bins[labels == label], minlength=_AUC_BINS)

    def click_rate(self) -> float:
        """The share of clicks so far."""
        return float(self.counts[1].sum() / self.counts.sum())

    def value(self) -> float:
        """The AUC of all rows so far; NaN where all labels are equal."""
        negatives, positives = self.counts
        below = negatives.cumsum() - negatives / 2
        pairs = int(negatives.sum()) * int(positives.sum())
        return float(positives @ below) / pairs if pairs else float("nan")


def check_seeds(out: Path, rows: int, seed: int, effects_seed: int) -> None:
    """Raise a UserError if one is impossible."""
    if rows < 1 or min(seed, effects_seed) < 0:
        wrong = f"rows={rows}, seed={seed}, effects_seed={effects_seed}"
        raise UserError(f"cannot write {wrong} to {out}: needs rows >= 1 and seeds >= 0; give others")


def write_clicks(
    out: Path, rows: int = DEFAULT_ROWS, seed: int = 0, effects_seed: int = 0, law: Law | None = None
) -> Planted:
    """Write `rows` clicks to `out` (gzip if it ends in .gz), replacing it at once when all are written.

    Equal arguments give equal bytes, whatever the number of threads. Files of equal `effects_seed` and law share the
    true model, whatever their `seed`.

    Raises:
        UserError: `rows` or a seed is out of range, or `out` cannot be written; nothing is left behind.
    """
    check_seeds(out, rows, seed, effects_seed)
    if out.exists() and not out.is_file():
        raise UserError(f"{out}: cannot be written: it is no file that could be replaced; name another")
    model, auc = PlantedModel(effects_seed, law), Auc()

    def chunk(start: int) -> tuple[Drawn, pa.Buffer]:
        rng = np.random.default_rng([seed, 0, start // CHUNK_ROWS])
        drawn = model.draw(rng, min(CHUNK_ROWS, rows - start))
        text = pa.BufferOutputStream()
        csv.write_csv(_to_table(drawn), text, _CSV)
        return drawn, text.getvalue()

    with (
        _replacing(out) as file,
        progress.bar("synth", "rows", rows) as bar,
        ThreadPoolExecutor(_THREADS) as pool,
    ):
        for drawn, text in _ahead(pool, chunk, range(0, rows, CHUNK_ROWS)):
            auc.add(drawn.logits, drawn.labels)
            file.write(text)
            bar.update(len(drawn.labels))
    return Planted(rows, seed, effects_seed, auc.click_rate(), auc.value())


_CSV = csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
_THREADS = min(16, cores.usable())


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[int], tuple[Drawn, pa.Buffer]], starts: range
) -> Iterator[tuple[Drawn, pa.Buffer]]:
    """Results in order, of which a few are made ahead."""
    ahead: deque[Future[tuple[Drawn, pa.Buffer]]] = deque()
    for start in starts:
        ahead.append(pool.submit(work, start))
        if len(ahead) > 2 * _THREADS:
            yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()


def _to_table(drawn: Drawn) -> pa.Table:
    """One chunk as 40 columns: label, integers and hex names, null where missing."""
    columns = [pa.array(drawn.labels.astype(np.int8))]
    for values in drawn.integers:
        missing = np.isnan(values)
        columns.append(pa.array(np.where(missing, 0, values).astype(np.int32), mask=missing))
    columns += [_hex_names(category, ids) for category, ids in enumerate(drawn.ids)]
    return pa.table(columns, names=["label", *INTEGERS, *CATEGORIES])


@contextmanager
def _replacing(out: Path) -> Iterator[pa.NativeFile]:
    """Open a temporary file beside `out`; rename it to `out` on success, remove it on any failure."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        with pa.output_stream(temporary, compression="gzip" if out.suffix == ".gz" else None) as file:
            yield file
        temporary.replace(out)
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise UserError(f"{out}: cannot be written ({reason}); give a file in an existing, writable folder") from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def oracle_logits(table: pa.Table | pa.RecordBatch, effects_seed: int = 0) -> FloatArray:
    """The true logits of raw rows: `PlantedModel.raw_logits` of the model of `effects_seed`."""
    return PlantedModel(effects_seed).raw_logits(table)


def _numpy(column: pa.Array | pa.ChunkedArray, missing: float) -> npt.NDArray[Any]:
    """A numeric column as NumPy array (rows,) with nulls replaced."""
    return pc.fill_null(column, missing).to_numpy()


def best_auc(path: Path, effects_seed: int = 0, rows: slice | None = None) -> float:
    """The best reachable AUC of the lines `rows.start` to `rows.stop` (not negative, no step) of written clicks.

    It is the AUC of the true logit, NaN where all labels are equal; the file is read in blocks.

    Raises:
        UserError: the file cannot be read, or it was not written by `write_clicks`.
    """
    wanted = rows or slice(None)
    first, stop = wanted.start or 0, sys.maxsize if wanted.stop is None else wanted.stop
    model, auc, seen = PlantedModel(effects_seed), Auc(), 0
    try:
        for batch in _open_clicks(path):
            kept = batch.slice(max(first - seen, 0), max(stop - max(seen, first), 0))
            if kept.num_rows:
                auc.add(model.raw_logits(kept), kept["label"].to_numpy() == 1)
            seen += batch.num_rows
            if seen >= stop:
                break
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (OSError, pa.ArrowInvalid) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read as clicks ({reason}); write some: dlrm-dist synth") from None
    return auc.value()


def _open_clicks(path: Path) -> csv.CSVStreamingReader:
    """Open raw clicks (.gz or not) as a stream of record batches of 40 columns; empty integers become null."""
    types = {"label": pa.int8()} | {name: pa.int32() for name in INTEGERS} | {name: pa.string() for name in CATEGORIES}
    return csv.open_csv(
        path,
        csv.ReadOptions(column_names=list(types), block_size=1 << 24),
        csv.ParseOptions(delimiter="\t", quote_char=False),
        csv.ConvertOptions(column_types=types),
    )

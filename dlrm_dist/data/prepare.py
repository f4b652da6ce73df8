"""Prepare: raw click logs into a dataset of Parquet parts, streaming, in one pass over the rows after counting them.

All source files form one sequence of rows, cut into train, valid and test. Training rows are spooled to disk where they
are shuffled or where a vocabulary must be counted before the first of them can be written.
"""

import contextlib
import os
import re
import shutil
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import pyarrow as pa
from tqdm import tqdm

from dlrm_dist.data import raw
from dlrm_dist.data.kaggle import BINS, CATEGORIES, DENSE, Dense
from dlrm_dist.data.schema import GROUP_ROWS, LANES, Category, DatasetInfo, Split
from dlrm_dist.data.splits import RANDOM, SPLITS, Drawing, split_lines
from dlrm_dist.data.vocabulary import MISSING, Coding, Counting, hash_encoder, read_coding
from dlrm_dist.data.writer import Layout, Ordered, Spool, columns_schema, rebatched, write_split
from dlrm_dist.errors import UserError

THREADS = min(16, os.cpu_count() or 1)
ENCODE_ROWS, SEARCH_ROWS = 1 << 17, 1 << 20
"""Rows coded at a time, and rows searched in a vocabulary at a time, as each search starts with a table of all of it.
Hashing 131,072 rows at a time prepared 412,000 rows/s where 1,048,576 came to 349,000 (two cores)."""


@dataclass(frozen=True)
class PrepareOptions:
    """How raw rows become a dataset.

    `split` is "none" (all sources are training rows; `valid` and `test` name the others' files), "kaggle" (7 equal
    chunks in file order: 6 train, the last halved into valid and test), "day" (MLPerf's: the last file is halved into
    valid and test), "bars_x1" or "bars_x4" (drawn at random by `seed`, 7:2:1 or 8:1:1), or three fractions
    "0.8,0.1,0.1" in file order.
    `vocabulary` is a dataset, or its folder of vocabularies, whose ids the rows get instead of new ones.
    `on_bad_row`: "error", or "skip" (left out), or "null" (bad fields become missing values; rows with a bad label or
    number of columns are left out); splits are cut by lines, whatever is left out.
    `ids`, `hash_rows`, `min_count`, `dense` and `bins` (each integer is also a category) are about format kaggle:
    format slot keeps its ids and dense values.
    """

    format: raw.Format
    valid: tuple[Path, ...] = ()
    test: tuple[Path, ...] = ()
    split: str = "none"
    ids: Literal["hash", "vocabulary"] = "vocabulary"
    hash_rows: int = 1_000_000
    min_count: int = 2
    vocabulary: Path | None = None
    dense: Dense = "log1p"
    bins: bool = False
    on_bad_row: raw.OnBadRow = "error"
    shuffle: bool = True
    seed: int = 0
    lanes: int = LANES
    group_rows: int = GROUP_ROWS


def prepare(
    sources: Sequence[Path], out: Path, options: PrepareOptions, best_auc: dict[str, float] | None = None
) -> DatasetInfo:
    """Write the dataset `out` from raw click logs: all of it, or nothing on an error.

    Args:
        sources: files, plain or .gz, and folders of files, taken by name (hidden ones and subfolders are not).
        out: the folder to make; it must not exist.
        options: see there.
        best_auc: what goes into `dataset.json`, where the clicks were planted.

    Raises:
        UserError: an option, a source or a row is bad, or `out` exists or cannot be written.
    """
    _check_options(options)
    if out.exists() or out.is_symlink():
        raise UserError(f"{out}: exists already; allowed: a new folder; name another one or remove it")
    given = {"train": _files(sources), "valid": _files(options.valid), "test": _files(options.test)}
    _check_distinct([file for files in given.values() for file in files])
    counted = {name: [raw.count_rows(file) for file in files] for name, files in given.items()}
    splits = split_lines(counted, options.split, options.seed)
    recorded = _Recorded(_transform(given, options), best_auc or {})
    work = out.parent / f".{out.name}.tmp-{os.getpid()}"
    try:
        work.mkdir(parents=True)
        info = _run([file for name in SPLITS for file in given[name]], splits, work, options, recorded)
        work.rename(out)
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written: {error}; allowed: a folder on a disk with room for the rows twice; free or "
            "choose another one"
        ) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return info


class _Recorded(NamedTuple):
    """What goes into `dataset.json` besides the columns and the splits."""

    transform: dict[str, Any]
    best_auc: dict[str, float]


def _run(
    files: list[Path], splits: dict[str, int], work: Path, options: PrepareOptions, recorded: _Recorded
) -> DatasetInfo:
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            rows = _Rows(files, options, pool)
            return _Preparation(rows, splits, work, options).run(recorded, pool)
        finally:
            pool.shutdown(cancel_futures=True)


_MOST = 1 << 40
"""Beyond any table, file or seed; what is larger is a mistyped number."""


def _check_options(options: PrepareOptions) -> None:
    for name, least in (("hash_rows", 1), ("min_count", 1), ("seed", 0), ("lanes", 1), ("group_rows", 1)):
        if not least <= getattr(options, name) < _MOST:
            raise UserError(f"{name}: {getattr(options, name)} is impossible; allowed: {least} to {_MOST - 1}")
    allowed = {"format": ("kaggle", "slot"), "ids": ("hash", "vocabulary"), "dense": get_args(Dense)}
    allowed["on_bad_row"] = get_args(raw.OnBadRow) if options.format != "slot" else ("error", "skip")
    for name, values in allowed.items():
        if getattr(options, name) not in values:
            raise UserError(f"{name}: {getattr(options, name)!r} is unknown; allowed: {', '.join(values)}; choose one")
    if options.format == "slot" and options.bins:
        raise UserError(
            "bins: format slot holds scaled values, not integers; allowed: with format kaggle; leave it out"
        )
    if options.vocabulary and (options.format == "slot" or options.ids == "hash"):
        raise UserError(
            "vocabulary: the ids do not come from one; allowed: with format kaggle and ids vocabulary; leave it out"
        )
    if options.split != "none" and (options.valid or options.test):
        raise UserError(
            f"split: {options.split!r} cuts the sources, but files for valid or test are given too; allowed: one of "
            "the two; use split none or leave those files away"
        )


def _files(sources: Sequence[Path]) -> list[Path]:
    """The files that `sources` name, folders replaced by their files in name order."""
    files: list[Path] = []
    for source in sources:
        try:
            found = [source] if not source.is_dir() else sorted(source.iterdir())
        except OSError as error:
            raise UserError(f"{source}: cannot be read: {error.strerror}; allowed: readable folders; mend it") from None
        found = [file for file in found if file == source or (file.is_file() and not file.name.startswith("."))]
        found.sort(key=_natural)
        if not found:
            raise UserError(f"{source}: a folder without files; allowed: files or folders of files; name another one")
        files += found
    return files


def _natural(file: Path) -> list[tuple[int, str]]:
    """A key that orders by name with numbers by value: day_2 before day_10."""
    return [(int(word), "") if word.isdigit() else (-1, word) for word in re.split(r"([0-9]+)", file.name)]


def _check_distinct(files: list[Path]) -> None:
    seen: set[Path] = set()
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: no such file; allowed: files and folders of files; check the path")
        if file.resolve() in seen:
            raise UserError(f"{file}: named twice; allowed: each file once, in one split; remove one of the two")
        seen.add(file.resolve())


class _Rows:
    """The rows of all files in order, parsed ahead by a pool of threads and handed out split by split."""

    def __init__(self, files: Sequence[Path], options: PrepareOptions, pool: ThreadPoolExecutor) -> None:
        self._pool, self._options = pool, options
        self._pieces = self._parsed(files)
        self._rest: raw.Parsed | None = None
        self.faults: Counter[str] = Counter()
        self._changed = UserError(
            "the sources changed while they were read: they hold other numbers of rows than were counted; allowed: "
            "files that nothing writes to; prepare again"
        )

    def _parsed(self, files: Sequence[Path]) -> Iterator[raw.Parsed]:
        how = self._options
        ahead: deque[Future[raw.Parsed]] = deque()
        for block in (block for file in files for block in raw.read_blocks(file)):
            ahead.append(self._pool.submit(raw.parse_or_mend, block, how.format, how.dense, how.bins, how.on_bad_row))
            if len(ahead) > 2 * THREADS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def take(self, lines: int) -> Iterator[raw.Parsed]:
        """Pieces with the rows of the next `lines` lines altogether."""
        while lines:
            piece = next(self._pieces, None) if self._rest is None else self._rest
            if piece is None:
                raise self._changed
            self.faults.update(piece.faults)
            piece, self._rest = piece.cut(lines)
            lines -= piece.lines
            yield piece

    def check_end(self) -> None:
        """Raise unless all lines were taken."""
        if self._rest is not None or next(self._pieces, None) is not None:
            raise self._changed


class _Preparation:
    """One run: its rows, its threads and its progress."""

    def __init__(self, rows: _Rows, splits: dict[str, int], work: Path, options: PrepareOptions) -> None:
        self._rows, self._splits, self._work, self._options = rows, splits, work, options
        self._others: dict[str, Spool] = {}
        self._names = CATEGORIES + (BINS if options.bins else ())

    def run(self, recorded: _Recorded, pool: ThreadPoolExecutor) -> DatasetInfo:
        """Write every split and `dataset.json`."""
        train, coding = self._train(pool)
        categories = tuple(Category(name=name, rows=rows) for name, rows in coding.rows.items())
        schema = columns_schema(DENSE, categories, recorded.transform)
        layout = Layout(self._options.lanes, self._options.group_rows)
        splits: dict[str, Split] = {}
        with _progress(self._splits, "write") as bar:
            for name in self._splits:
                ordered = train if name == "train" else _in_order(self._take(name), coding)
                tables = _counted((coding.encode(table, order, pool) for table, order in ordered), bar)
                splits[name] = write_split(tables, self._work / name, schema, layout, pool)
        self._rows.check_end()
        empty = next((name for name, split in splits.items() if not split.rows), None)
        if empty:
            raise UserError(f"split {empty}: all its rows are bad; allowed: at least one good row; mend the sources")
        info = DatasetInfo(
            dense=DENSE,
            categories=categories,
            lanes=layout.lanes,
            group_rows=layout.group_rows,
            splits=splits,
            transform=recorded.transform,
            best_auc=recorded.best_auc,
            bad_rows=dict(sorted(self._rows.faults.items())),
        )
        info.write(self._work)
        return info

    def _train(self, pool: ThreadPoolExecutor) -> tuple[Iterator[Ordered], Coding]:
        """The training rows, and the coding of the categories, which a vocabulary takes from these rows."""
        rows, options = self._splits["train"], self._options
        tables = self._take("train")
        fixed = self._fixed_coding()
        if fixed and not options.shuffle:
            return _in_order(tables, fixed), fixed
        counting = Counting(self._names)
        spool = Spool(self._work / "spool", rows, options.seed if options.shuffle else None)
        with contextlib.closing(spool), _progress({"train": rows}, "read") as bar:
            for table in _counted(tables, bar):
                spool.add(table)
                if not fixed:
                    counting.add(table, pool)
        coding = fixed or counting.finish(options.min_count, self._work / "vocabulary")
        return spool.read() if options.shuffle else _in_order((table for table, _ in spool.read()), coding), coding

    def _take(self, name: str) -> Iterator[pa.Table]:
        """The rows of a split, before they are shuffled; the splits must be taken in order."""
        if self._options.split not in RANDOM:
            return (piece.table for piece in self._rows.take(self._splits[name]))
        return self._scatter() if name == "train" else (table for table, _ in self._others[name].read())

    def _scatter(self) -> Iterator[pa.Table]:
        """The training rows of a random split; those of the other splits are spooled on the way."""
        self._others = {name: Spool(self._work / f"{name}.spool", self._splits[name], None) for name in SPLITS[1:]}
        drawing = Drawing(self._options.split, self._options.seed)
        for piece in self._rows.take(sum(self._splits.values())):
            split = drawing.next(piece.lines) if piece.kept is None else drawing.next(piece.lines)[piece.kept]
            for place, spool in enumerate(self._others.values(), 1):
                spool.add(piece.table.filter(pa.array(split == place)))
            yield piece.table.filter(pa.array(split == 0))
        for spool in self._others.values():
            spool.close()

    def _fixed_coding(self) -> Coding | None:
        """The coding, where it does not depend on the rows."""
        options = self._options
        if options.format == "slot":
            return Coding(dict.fromkeys(CATEGORIES, raw.SLOT_ROWS), {})
        if options.vocabulary:
            return read_coding(options.vocabulary, self._names, self._work / "vocabulary")
        if options.ids == "hash":
            encoders = dict.fromkeys(self._names, hash_encoder(options.hash_rows))
            return Coding(dict.fromkeys(self._names, options.hash_rows), encoders)
        return None


def _in_order(tables: Iterable[pa.Table], coding: Coding) -> Iterator[Ordered]:
    return ((table, None) for table in rebatched(tables, SEARCH_ROWS if coding.searches else ENCODE_ROWS))


def _counted(tables: Iterable[pa.Table], bar: Any) -> Iterator[pa.Table]:
    for table in tables:
        yield table
        bar.update(table.num_rows)


def _progress(splits: dict[str, int], what: str) -> Any:
    return tqdm(total=sum(splits.values()), desc=f"prepare: {what}", unit=" rows", unit_scale=True, disable=None)


def _transform(sources: dict[str, list[Path]], options: PrepareOptions) -> dict[str, Any]:
    """What `dataset.json` says about how raw values became columns."""
    result: dict[str, Any] = {"format": options.format}
    if options.format == "slot":
        result |= {"dense": "none", "ids": "slot", "shared_id_space": True, "missing_id": 0}
    elif options.ids == "hash":
        result |= {"dense": options.dense, "ids": "hash", "hash_rows": options.hash_rows, "missing_value": MISSING}
    elif options.vocabulary:
        result |= {"dense": options.dense, "ids": "vocabulary", "vocabulary": str(options.vocabulary)}
    else:
        result |= {"dense": options.dense, "ids": "vocabulary", "min_count": options.min_count}
    if options.format == "kaggle":
        result["bins"] = options.bins
    if options.on_bad_row != "error":
        result["on_bad_row"] = options.on_bad_row
    result |= {"split": options.split, "shuffle_seed": options.seed if options.shuffle else None}
    return result | {"sources": {name: [str(file) for file in files] for name, files in sources.items() if files}}

"""Planted clicks written as a dataset at once, without raw rows between."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dlrm_dist import cores, progress
from dlrm_dist.data.schema import GROUP_ROWS, LABEL, LANES, Category, DatasetInfo
from dlrm_dist.data.splits import split_lines
from dlrm_dist.data.synthetic import CATEGORIES, INTEGERS, Auc, Law, PlantedModel, check_seeds
from dlrm_dist.data.work_folder import work_folder
from dlrm_dist.data.writer import Layout, columns_schema, write_split
from dlrm_dist.errors import UserError

_DRAWN_ROWS = 1 << 15
"""Rows drawn at a time, each time by a generator of their own: part of the dataset's definition."""
_THREADS = 16
_LAYOUT = Layout(LANES, GROUP_ROWS)


def write_dataset(
    out: Path,
    rows: int,
    split: str = "0.8,0.1,0.1",
    seed: int = 0,
    effects_seed: int = 0,
    law: Law | None = None,
    layout: Layout = _LAYOUT,
) -> DatasetInfo:
    """Write `rows` clicks as the dataset `out`: all of it, or nothing on an error or an interrupt.

    Integers are log(x + 1); id k + 1 is the k-th most frequent value, 0 a missing one. Equal arguments give equal
    bytes, whatever the number of threads.

    Args:
        out: the folder to make; it must not exist.
        rows: of all splits.
        split: "none" (training rows alone), "kaggle", or fractions of train, valid and test.
        seed: of the rows.
        effects_seed: of the signal.
        law: of the ids.
        layout: of the parts.

    Raises:
        UserError: an argument is out of range, or `out` exists or cannot be written.
    """
    check_seeds(out, rows, seed, effects_seed)
    if out.exists() or out.is_symlink():
        raise UserError(f"{out}: exists already; allowed: a new folder; name another one or remove it")
    splits = split_lines({"train": [rows], "valid": [], "test": []}, split, seed, way_out="more --rows")
    model = PlantedModel(effects_seed, law)
    categories = tuple(
        Category(name=name, rows=size + 1) for name, size in zip(CATEGORIES, model.law.cardinalities, strict=True)
    )
    transform = _transform(model.law, {"split": split, "seed": seed, "effects_seed": effects_seed})
    schema = columns_schema(INTEGERS, categories, transform)
    written, best = {}, {}
    with (
        work_folder(out, None) as work,
        ThreadPoolExecutor(min(_THREADS, cores.usable())) as pool,
        progress.bar("synth", "rows", rows) as bar,
    ):
        for place, (name, size) in enumerate(splits.items()):
            drawing = _Drawing(model, [seed, 3, place])
            written[name] = write_split(drawing.rows, size, work / name, schema, layout, pool, bar)
            best[name] = drawing.auc.value()
        info = DatasetInfo(
            dense=INTEGERS,
            categories=categories,
            lanes=layout.lanes,
            group_rows=layout.group_rows,
            splits=written,
            transform=transform,
            best_auc={name: auc for name, auc in best.items() if not np.isnan(auc)},  # few rows may be of one class
        )
        info.write(work)
    return info


def _transform(law: Law, arguments: dict[str, Any]) -> dict[str, Any]:
    """What `dataset.json` says about how the columns were made."""
    made = {"format": "synth", "dense": "log1p", "ids": "rank", "missing_id": 0}
    return made | arguments | {"cardinalities": list(law.cardinalities), "exponent": law.exponent}


class _Drawing:
    """The rows of a split, and the AUC of their true logits."""

    def __init__(self, model: PlantedModel, key: list[int]) -> None:
        self._model, self._key, self._lock, self.auc = model, key, threading.Lock(), Auc()

    def rows(self, start: int, stop: int) -> pa.Table:
        """Rows `start` to `stop` (exclusive); each part is drawn by its own generators."""
        drawn = [self._some(start, at, min(_DRAWN_ROWS, stop - at)) for at in range(start, stop, _DRAWN_ROWS)]
        return pa.concat_tables(drawn)

    def _some(self, start: int, at: int, rows: int) -> pa.Table:
        drawn = self._model.draw(np.random.default_rng([*self._key, start, at]), rows)
        with self._lock:
            self.auc.add(drawn.logits, drawn.labels)
        values = np.fmax(drawn.integers, 0)  # fmax(NaN, 0) is 0
        np.log1p(values, out=values)
        ids = drawn.ids + np.int32(1)
        columns = [pa.array(drawn.labels.astype(np.uint8)), *map(pa.array, values), *map(pa.array, ids)]
        return pa.Table.from_arrays(columns, names=[LABEL, *INTEGERS, *CATEGORIES])

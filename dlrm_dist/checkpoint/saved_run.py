"""A run as it lies on disk: which checkpoint of it is meant, its config, its columns; read without PyTorch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from dlrm_dist import config as config_module
from dlrm_dist.checkpoint import folder as folders
from dlrm_dist.config import Config
from dlrm_dist.data import footers, vocabulary
from dlrm_dist.data.schema import Category, DatasetInfo, read_description
from dlrm_dist.errors import UserError

CHOICES = "newest, best, or a step"


@dataclass(frozen=True)
class Columns:
    """What a model takes: columns, and what their ids mean.

    Attributes:
        folder: of a run or an export; `vocabulary/` is there, if the ids are of one.
        info: the dataset it was trained on; its rows need not be there any more.
        table_rows: ids that each category's table takes; those of managed collisions take the category's.
        expand: ids that a sample's one id becomes in each category; None: it stays one.
    """

    folder: Path
    info: DatasetInfo
    table_rows: tuple[int, ...]
    expand: tuple[int, ...] | None


@dataclass(frozen=True)
class SavedRun:
    """A run and the checkpoint of it that was chosen.

    Attributes:
        path: the run's folder.
        checkpoint: the checkpoint's folder.
        config: the checkpoint's configuration.
        info: the dataset it was trained on, whose rows need not be there any more.
    """

    path: Path
    checkpoint: Path
    config: Config
    info: DatasetInfo

    @property
    def step(self) -> int:
        """Completed steps."""
        return folders.step_of(self.checkpoint)

    @property
    def columns(self) -> Columns:
        """What its model takes."""
        model, categories = self.config.model, self.info.categories
        rows = model.num_embeddings or tuple(each.rows for each in categories)
        takes = zip(categories, rows, strict=True)
        table_rows = tuple(each.rows if each.name in model.managed_collisions else own for each, own in takes)
        return Columns(self.path, self.info, table_rows, self.config.data.expand_multi_hot)

    @property
    def checkpoints(self) -> list[Path]:
        """All checkpoints of the run, oldest first."""
        return folders.complete_ones(self.path / "checkpoints")


def find(path: Path, checkpoint: str = "newest", keys: Sequence[str] = ()) -> SavedRun:
    """The run at `path`.

    Args:
        path: the run's folder.
        checkpoint: `newest`, `best` (by AUC on `eval.split`), or a step.
        keys: `--section.key value`, in place of what the run's config has.

    Raises:
        UserError: no run is there; it has no such checkpoint; a key is unknown or has a wrong value.
    """
    if (path / folders.FACTS).is_file():
        raise UserError(f"{path}: is a checkpoint; name its run and choose the checkpoint: --checkpoint STEP")
    if not (path / folders.CONFIG).is_file():
        raise UserError(f"{path}: is no run's folder (no {folders.CONFIG}); name what training made, such as runs/NAME")
    chosen = _choose(path, checkpoint)
    config = config_module.load(["--config", str(chosen / folders.CONFIG), *keys])
    return SavedRun(path, chosen, config, read_description(path))


def _choose(path: Path, wanted: str) -> Path:
    """The checkpoint that is meant."""
    there = {folders.step_of(each): each for each in folders.complete_ones(path / "checkpoints")}
    if not there:
        raise UserError(f"{path}: the run has no complete checkpoint; train it on: --train.resume auto")
    if wanted == "newest":
        return there[max(there)]
    if wanted == "best":
        best = folders.best_of(path / "checkpoints")
        if best is None:
            raise UserError(f"{path}: none of its checkpoints was scored, so none is best; use --checkpoint newest")
        return best[0]
    if not wanted.isdecimal() or int(wanted) not in there:
        steps = ", ".join(map(str, there))
        raise UserError(f"{path}: has no checkpoint {wanted!r}; allowed: {CHOICES}, here {steps}")
    return there[int(wanted)]


def check_columns(columns: Columns, data: Path, info: DatasetInfo) -> None:
    """Check that a dataset's columns mean what those of a run or an export mean.

    Raises:
        UserError: columns differ; ids lie beyond the tables, or stand for other values.
    """
    problem = _problem(columns, data, info)
    if problem:
        folder = columns.folder
        ids = f", with its ids: --vocabulary {folder}" if (folder / "vocabulary").is_dir() else ""
        raise UserError(f"{data}: {problem}; prepare it as the run's dataset was{ids}")


def check_rows(data: Path, info: DatasetInfo, split: str, world_size: int) -> None:
    """Check that a split has rows that so many ranks can read.

    Raises:
        UserError: there is no such split; it has no rows, or fewer than ranks; its files are not what they should be.
    """
    if split not in info.splits:
        raise UserError(f"{data}: has no split {split!r}; it has {', '.join(info.splits)} (--split chooses one)")
    rows = info.splits[split].rows
    if not rows:
        raise UserError(f"{data}: split {split} has no rows; choose another of {', '.join(info.splits)} (--split)")
    if world_size > min(rows, info.lanes):
        what = f"has {rows} rows" if rows < info.lanes else f"is written in {info.lanes} lanes"
        raise UserError(f"{data}: split {split} {what}, too few for {world_size} ranks; use fewer ranks")
    footers.check_split(data, info, split)


def _problem(columns: Columns, data: Path, info: DatasetInfo) -> str | None:
    before = columns.info
    if info.dense != before.dense:
        return _difference("dense columns", before.dense, info.dense)
    names, had = tuple(map(_named, info.categories)), tuple(map(_named, before.categories))
    if names != had:
        return _difference("categories", had, names)
    for key in ("dense", "ids"):
        now, then = info.transform.get(key), before.transform.get(key)
        if None not in (now, then) and now != then:
            return f"was prepared with {key} {now}, the dataset of {columns.folder} with {then}"
    for category, old, table_rows in zip(info.categories, before.categories, columns.table_rows, strict=True):
        is_other = category.rows != old.rows if info.transform.get("ids") == "hash" else category.rows > table_rows
        if is_other:
            return f"column {category.name} has {category.rows} ids, the run {min(old.rows, table_rows)}"
        if not _same_vocabulary(columns.folder, data, category.name):
            return f"the ids of column {category.name} stand for other values than the run's"
    return None


def _named(category: Category) -> str:
    return category.name + (" (lists)" if category.multi_hot else "")


def _difference(what: str, before: tuple[str, ...], now: tuple[str, ...]) -> str:
    """The first difference of two lists of columns, or what is too many or missing."""
    missing, more = [each for each in before if each not in now], [each for each in now if each not in before]
    said = [f"lacks {', '.join(missing[:3])}"] if missing else []
    said += [f"also has {', '.join(more[:3])}"] if more else []
    how = " and ".join(said) or "has them in another order"
    return f"has other {what} than the run ({len(now)}, the run {len(before)}): {how}"


def _same_vocabulary(run: Path, data: Path, name: str) -> bool:
    """Whether a column's ids stand for the same values; a run whose ids were hashed or kept has no vocabulary."""
    old, new = vocabulary.file_of(run, name), vocabulary.file_of(data, name)
    if not old.is_file() or not new.is_file():
        return old.is_file() == new.is_file()
    return old.samefile(new) or pq.read_table(old, columns=["value"]).equals(pq.read_table(new, columns=["value"]))

"""Export: a trained run as a folder that scores on its own, checked against the run before it appears."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from dlrm_dist.checkpoint.folder import read_facts
from dlrm_dist.checkpoint.saved_run import SavedRun, check_columns, check_rows
from dlrm_dist.checkpoint.source import Source
from dlrm_dist.data.schema import LABEL, DatasetInfo, read_info
from dlrm_dist.errors import UserError
from dlrm_dist.serving import program
from dlrm_dist.serving.bags import Precision, replace_tables
from dlrm_dist.serving.bundle import CARD, Bundle, Signature, versions, write_bundle
from dlrm_dist.serving.card import card
from dlrm_dist.serving.check import DiffersError, compare
from dlrm_dist.serving.example import write_example
from dlrm_dist.serving.inputs import InputCodec
from dlrm_dist.serving.managed import IdMaps, read_maps, write_maps
from dlrm_dist.serving.program import Inputs, Probabilities
from dlrm_dist.serving.reference import Reference
from dlrm_dist.serving.row_files import readable
from dlrm_dist.serving.scorer import BATCH_ROWS, Scorer
from dlrm_dist.serving.weights import build_unsharded, open_weights, tables

CHECKED_ROWS = 1 << 15
"""Real rows that an export is compared over; their own rows of the tables are held in fp32 for it."""


def export(saved: SavedRun, data: Path, split: str, out: Path, precision: Precision, form: program.Format) -> Bundle:
    """Write an export: all of it, or nothing. One process; memory for the tables in `precision`, and one more in fp32.

    Args:
        saved: the run, and the checkpoint that was chosen.
        data: a dataset of the run's columns, whose rows it is checked over.
        split: of the dataset.
        out: the folder to make.
        precision: of the tables.
        form: of the program.

    Raises:
        UserError: `out` exists or cannot be written; dataset, checkpoint or model cannot be used; no compiler.
        DiffersError: its probabilities differ from the trained model's by more than is allowed.
    """
    if out.exists() or out.is_symlink():
        raise UserError(f"{out}: is there already; name a folder that does not exist")
    if form == "aoti":
        program.check_compiler()
    source = open_weights(saved)
    maps = read_maps(saved.config.model, source)
    inputs, labels = _sample(saved, maps, data, split)
    module, before = _gathered(saved, source, inputs, precision)
    with _appearing(out) as folder:
        program.write(module, inputs[0], form, folder / program.FILE)
        loaded = program.load(form, folder / program.FILE)
        check = compare(loaded, inputs, labels, before, precision)
        if not check.holds:
            raise DiffersError(
                f"{out}: not made: over {check.rows} rows probabilities differ from the trained model's by up to "
                f"{check.difference:.3g} (allowed {check.tolerance:g}), AUC by {check.auc_change or 0:.3g} (allowed "
                f"{check.auc_tolerance:g}); use --embeddings of more bits"
            )
        bundle = Bundle(
            program=form,
            embeddings=precision,
            signature=Signature.of(saved),
            run=saved.path.resolve().name,
            step=saved.step,
            scores=read_facts(saved.checkpoint).scores,
            check=check,
            versions=versions(),
        )
        write_maps(maps, folder)
        if (saved.path / "vocabulary").is_dir():
            shutil.copytree(saved.path / "vocabulary", folder / "vocabulary")
        write_example(Scorer(bundle.signature.columns(folder), loaded, maps), folder)
        (folder / CARD).write_text(card(saved, bundle))
        return write_bundle(folder, bundle)


def _sample(saved: SavedRun, maps: IdMaps, data: Path, split: str) -> tuple[list[Inputs], Tensor]:
    """The first rows of a split, and their labels, float32 [rows]."""
    info = read_info(data)
    check_columns(saved.columns, data, info)
    check_rows(data, info, split, 1)
    table = _first_rows(data, info, split)
    codec = InputCodec(saved.columns, maps, f"the rows of {data}")
    starts = range(0, table.num_rows, BATCH_ROWS)
    labels = torch.from_numpy(table[LABEL].to_numpy().astype(np.float32))
    return [codec.inputs(table[start : start + BATCH_ROWS]) for start in starts], labels


def _first_rows(data: Path, info: DatasetInfo, split: str) -> pa.Table:
    """At least two: with one, torch.export would take the number of rows for a constant."""
    found, have = list[pa.RecordBatch](), 0
    for part in info.splits[split].parts:
        with readable(str(data / part)), pq.ParquetFile(data / part) as file:
            for batch in file.iter_batches(CHECKED_ROWS):
                found.append(batch[: CHECKED_ROWS - have])
                have += found[-1].num_rows
                if have == CHECKED_ROWS:
                    return pa.Table.from_batches(found)
    if have < 2:
        raise UserError(f"{data}: split {split} has {have} rows, and an export is checked over 2 or more; give another")
    return pa.Table.from_batches(found)


def _gathered(
    saved: SavedRun, source: Source, inputs: Sequence[Inputs], precision: Precision
) -> tuple[Probabilities, Tensor]:
    """The model to export, and the trained model's probabilities of the inputs; each table is read once."""
    features = [each.name for each in saved.info.categories]
    served = build_unsharded(saved, source)
    reference = Reference(build_unsharded(saved, source), features, inputs)
    bags = replace_tables(served, features, precision)
    for table in tables(bags.names, source):
        bags.fill(table.name, table.weight)
        reference.take(table)
    return Probabilities(served), reference.probabilities()


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` at the end of the block, and is removed on an error."""
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        temporary.replace(out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}; nothing was left behind") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

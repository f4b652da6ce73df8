"""`dlrm-dist predict` and `dlrm-dist export`: a trained run's scores, and what scores without the run."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dlrm_dist.errors import UserError

if TYPE_CHECKING:
    from dlrm_dist.checkpoint.saved_run import Columns
    from dlrm_dist.serving.row_files import RowFiles
    from dlrm_dist.serving.scorer import Scorer

_PREPARED = "prepared"
_CHECKPOINT = "newest, best (by AUC), or a step (default %(default)s)"


def add_predict(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the options of `dlrm-dist predict`."""
    parser.description = (
        "A probability for each row, in the rows' order, as Parquet. One process on CPU, which holds the run's tables; "
        "rows stream. Raw rows go through the run's own transform and vocabularies, and need no labels."
    )
    parser.add_argument("trained", metavar="RUN", type=Path, help="a run, or what dlrm-dist export made of one")
    parser.add_argument(
        "rows", metavar="ROWS", help="a prepared dataset; with --format, raw files (a file, a folder, a glob, a URL)"
    )
    parser.add_argument(
        "out", metavar="OUT", type=Path, help="the Parquet file to make: what --keep names, and `probability`"
    )
    parser.add_argument("--split", help="of a prepared dataset (default: the run's eval.split)")
    parser.add_argument(
        "--format",
        choices=(_PREPARED, "kaggle", "terabyte", "slot", "npy", "parquet"),
        default=_PREPARED,
        help="of the rows; a raw one must be that which the run's dataset was made from (default %(default)s)",
    )
    parser.add_argument("--keep", help="columns that go along, with commas between: C1,label")
    parser.add_argument("--checkpoint", default="newest", help=_CHECKPOINT)
    parser.set_defaults(run=_predict)


def _predict(options: argparse.Namespace) -> int:
    from dlrm_dist.serving.predict import check_out, predict

    keep = tuple(options.keep.split(",")) if options.keep else ()
    check_out(options.out, keep)
    if options.split is not None and options.format != _PREPARED:
        raise UserError(f"--split {options.split}: raw rows have no splits; leave it out, or leave out --format")
    scorer, files = _scored(options, keep)
    done = predict(scorer, files, options.out)
    print(f"{options.out}: {done.rows:,} rows, {done.rate:,.0f} rows/s")
    return 0


def _scored(options: argparse.Namespace, keep: tuple[str, ...]) -> "tuple[Scorer, RowFiles]":
    """What scores, and the rows, which are looked at before a run's tables are read."""
    from dlrm_dist.checkpoint import saved_run
    from dlrm_dist.serving import bundle
    from dlrm_dist.serving.predictor import Predictor
    from dlrm_dist.serving.scorer import scorer_of_run

    exported = bundle.is_export(options.trained)
    if exported and options.checkpoint != "newest":
        raise UserError(f"--checkpoint {options.checkpoint}: an export is of one checkpoint; leave it out")
    if exported:
        predictor = Predictor(options.trained)
        return predictor, _rows(options, predictor.columns, predictor.bundle.signature.split, keep)
    saved = saved_run.find(options.trained, options.checkpoint)
    files = _rows(options, saved.columns, saved.config.eval.split, keep)
    return scorer_of_run(saved), files


def _rows(options: argparse.Namespace, columns: "Columns", split: str, keep: tuple[str, ...]) -> "RowFiles":
    """The rows that are to be scored; `split` is taken where none is given."""
    from dlrm_dist.checkpoint.saved_run import check_columns
    from dlrm_dist.data.schema import read_info
    from dlrm_dist.data.transform import Transform
    from dlrm_dist.serving import row_files

    if options.format != _PREPARED:
        return row_files.raw_rows_of(options.rows, options.format, Transform(columns.folder, columns.info), keep)
    folder = Path(options.rows)
    info = read_info(folder)
    check_columns(columns, folder, info)
    return row_files.prepared_rows(folder, info, options.split or split, keep)


def add_export(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the options of `dlrm-dist export`."""
    parser.description = (
        "A folder that scores without the run: the program (torch.export), its tables gathered and quantised, "
        "vocabularies, transform, a model card and an example request; dlrm_dist.Predictor loads it. Before it appears "
        "it is compared with the trained model over real rows; exit code 1 when it differs by more than is allowed."
    )
    parser.add_argument("trained", metavar="RUN", type=Path, help="a run")
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to make")
    parser.add_argument(
        "--embeddings",
        choices=("fp32", "fp16", "int8", "int4"),
        required=True,
        help="precision of the tables; the network stays fp32",
    )
    parser.add_argument(
        "--format",
        choices=("pt2", "aoti"),
        default="pt2",
        help="pt2: what torch.export saves; aoti: compiled for this processor, which wants a C++ compiler (default "
        "%(default)s)",
    )
    parser.add_argument("--data", type=Path, help="the dataset to compare over (default: the run's data.path)")
    parser.add_argument("--split", help="of it (default: the run's eval.split)")
    parser.add_argument("--checkpoint", default="newest", help=_CHECKPOINT)
    parser.set_defaults(run=_export)


def _export(options: argparse.Namespace) -> int:
    from dlrm_dist.checkpoint import saved_run
    from dlrm_dist.serving.check import DiffersError
    from dlrm_dist.serving.export import export

    saved = saved_run.find(options.trained, options.checkpoint)
    data, split = options.data or saved.config.data.path, options.split or saved.config.eval.split
    if options.data is None and not data.exists():
        raise UserError(f"{data}: the run's dataset is not here, and an export is compared over real rows; give --data")
    try:
        made = export(saved, data, split, options.out, options.embeddings, options.format)
    except DiffersError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    check = made.check
    auc = "" if check.auc is None else f", AUC {check.auc:.5f}, changed by {check.auc_change:.2g}"
    print(f"{options.out}: step {made.step}, {made.embeddings}, {made.program}")
    print(f"{check.rows:,} rows as the trained model scores them: within {check.difference:.2g}{auc}")
    return 0

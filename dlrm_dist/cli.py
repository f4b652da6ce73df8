"""The `dlrm-dist` command: thin verbs over the package.

Exit codes: 0 done, 1 a check failed, 2 a mistake of the caller (one line on stderr).
"""

import argparse
import re
import sys
from argparse import SUPPRESS
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from dlrm_dist import (
    checkpoint_verbs,
    doctor_verb,
    evaluate_verb,
    inspect_verb,
    plan_verbs,
    runs_verbs,
    serving_verbs,
    speaking,
    verify_verb,
)
from dlrm_dist.errors import RunFailedError, UserError

if TYPE_CHECKING:
    from dlrm_dist.data.options import PrepareOptions

_WITHOUT_DEFAULT = ("ids", "raw", "hash_rows", "min_count", "max_rows", "dense", "seed")
"""Options of `prepare` that must have an effect where they are given, and so are not there where they are not."""


_SYNTH_SPLIT = "0.8,0.1,0.1"


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's; the namespace also says which verb's parser it was (the innermost)."""
        found, rest = super().parse_known_args(args, namespace)
        if not hasattr(found, "prog"):
            found.prog = self.prog
        return found, rest

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit code."""
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        return options.run(options)
    except UserError as error:
        speaking.say(error)
        return 2
    except RunFailedError as error:
        speaking.say(error)
        return 1
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stdout = None
        return 0
    except KeyboardInterrupt:
        print("interrupted; nothing was left behind", file=sys.stderr)
        return 130


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a verb's command line; `run(options)` runs it.

    Raises:
        UserError: the verb or an option is unknown, or has a wrong value.
    """
    words = _in_utf8(arguments)
    options, rest = _parser().parse_known_args(words)
    if rest and not getattr(options, "takes_config_keys", False):
        raise UserError(f"unrecognized arguments: {' '.join(rest)}; see {options.prog} --help")
    options.config_keys, options.words = rest, words
    return options


def _in_utf8(words: Sequence[str]) -> Sequence[str]:
    """The words, if all are UTF-8: neither Arrow nor JSON can name another file."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UserError(f"argument {word!a}: is not UTF-8; allowed: names in UTF-8; rename it") from None
    return words


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="dlrm-dist", description="Data, plans and checkpoints of distributed DLRM training.")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    _add_synth(verbs.add_parser("synth", help="write planted clicks in Criteo's raw format"))
    _add_prepare(verbs.add_parser("prepare", help="turn raw click logs into a Parquet dataset"))
    plan_verbs.add_verbs(verbs.add_parser("plan", help="make, explain, compare and check sharding plans"))
    inspect_verb.add_inspect(verbs.add_parser("inspect", help="what is in a dataset or a checkpoint"))
    checkpoint_verbs.add_verbs(verbs.add_parser("checkpoint", help="reshard, unshard and compare checkpoints, offline"))
    evaluate_verb.add_evaluate(verbs.add_parser("evaluate", help="score a trained run on a dataset"))
    serving_verbs.add_predict(verbs.add_parser("predict", help="a trained run's probability for each row"))
    serving_verbs.add_export(verbs.add_parser("export", help="make a folder that scores without the run"))
    verify_verb.add_verify(verbs.add_parser("verify", help="sharded against unsharded training, on this machine"))
    doctor_verb.add_doctor(verbs.add_parser("doctor", help="what the machines can do, and what is amiss with them"))
    runs_verbs.add_runs(verbs.add_parser("runs", help="the runs in a folder, as a table"))
    runs_verbs.add_report(verbs.add_parser("report", help="a page about a run, or about several side by side"))
    _add_result(verbs.add_parser("result", help="say how a run ended"))
    return parser


def _add_synth(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Clicks with a planted signal, whose best reachable AUC is reported. Files of one --effects-seed share the "
        "signal, whatever their --seed."
    )
    parser.add_argument("out", type=Path, help="file to write: OUT.tsv, or OUT.tsv.gz; with --format parquet a folder")
    parser.add_argument("--format", choices=("tsv", "parquet"), default="tsv", help="raw rows, or a dataset at once")
    parser.add_argument("--rows", type=int, default=1_000_000, help="number of clicks (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the rows (default %(default)s)")
    parser.add_argument("--effects-seed", type=int, default=0, help="seed of the signal (default %(default)s)")
    parser.add_argument(
        "--cardinalities",
        default="planted",
        help="ids of each category: planted (few, learnt soon), kaggle or mlperf (as in their logs), or 26 numbers "
        "with commas between (default %(default)s)",
    )
    parser.add_argument(
        "--exponent", type=float, default=1.0, help="of the ids' power law; 0: all alike (default %(default)s)"
    )
    parser.add_argument(
        "--split",
        help="with --format parquet: none, kaggle, bars_x1, bars_x4, or fractions, as prepare has them (default "
        f"{_SYNTH_SPLIT})",
    )
    parser.set_defaults(run=_synth)


def _synth(options: argparse.Namespace) -> int:
    from dlrm_dist.data.law import NAMED_CARDINALITIES, Law
    from dlrm_dist.data.synthetic import write_clicks
    from dlrm_dist.data.synthetic_dataset import write_dataset

    given = options.cardinalities
    try:
        cardinalities = NAMED_CARDINALITIES.get(given) or tuple(int(word) for word in given.split(","))
    except ValueError:
        cardinalities = ()
    law = Law(cardinalities, options.exponent)
    if options.format == "parquet":
        split = _SYNTH_SPLIT if options.split is None else options.split
        info = write_dataset(options.out, options.rows, split, options.seed, options.effects_seed, law)
        for name, split in info.splits.items():
            best = f", best reachable AUC {info.best_auc[name]:.4f}" if name in info.best_auc else ""
            print(f"{options.out}: {name} {split.rows:,} rows, {split.clicks / split.rows:.1%} clicks{best}")
        return 0
    if options.split is not None:
        raise UserError(
            f"split: {options.split!r}: rows in format tsv are one file, which prepare splits; allowed: with --format "
            "parquet; leave it out"
        )
    report = write_clicks(options.out, options.rows, options.seed, options.effects_seed, law)
    print(
        f"{options.out}: {report.rows:,} rows, {report.click_rate:.1%} clicks, best reachable AUC {report.best_auc:.4f}"
    )
    return 0


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    parser.description = "Raw click logs to Parquet: columnar, shuffled once, with schema and vocabularies."
    parser.add_argument(
        "sources",
        nargs="+",
        help="files (text may be .gz), folders of files, or globs, here or as URLs such as s3://...",
    )
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument(
        "--format",
        choices=("kaggle", "terabyte", "slot", "npy", "parquet"),
        required=True,
        help="Criteo's TSV (kaggle and terabyte, the days of the 1 TB log, are read alike), slot text, TorchRec's npy "
        "triples, or any Parquet (with --schema)",
    )
    parser.add_argument("--schema", type=Path, help="TOML that maps the columns of --format parquet")
    parser.add_argument("--valid", action="append", default=[], help="source of the valid split; repeatable")
    parser.add_argument("--test", action="append", default=[], help="source of the test split; repeatable")
    parser.add_argument(
        "--split",
        default="none",
        help='"none": all sources are training rows; "kaggle": 6/7 train, 1/14 test, 1/14 valid in file order; '
        '"day": the last file is halved into valid and test; "bars_x1", "bars_x4": at random by --seed, 7:2:1 or 8:1:1;'
        ' or fractions in file order such as "0.8,0.1,0.1" (default %(default)s)',
    )
    _add_ids(parser)
    _add_rows(parser)
    parser.set_defaults(run=_prepare)


def _add_ids(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ids",
        choices=("vocabulary", "hash", "keep", "raw"),
        default=SUPPRESS,
        help="keep: the values are ids already; raw: they stay as they are, for tables with managed collisions "
        "(default vocabulary)",
    )
    parser.add_argument(
        "--raw",
        type=lambda text: tuple(text.split(",")),
        default=SUPPRESS,
        metavar="C3,C10",
        help="categories that get raw ids, whatever --ids says of the others",
    )
    parser.add_argument(
        "--hash-rows",
        type=_hash_rows,
        default=SUPPRESS,
        metavar="ROWS",
        help="with --ids hash: rows of each table, or R1,R2,... of one after the other (default 1000000)",
    )
    parser.add_argument(
        "--min-count", type=int, default=SUPPRESS, help="vocabulary: rarer values share one id (default 2)"
    )
    parser.add_argument(
        "--max-rows", type=int, default=SUPPRESS, help="vocabulary: rows of a table at most; rarer values share one id"
    )
    parser.add_argument(
        "--vocabulary", type=Path, help="a prepared dataset, or its vocabulary folder: give the rows its ids"
    )


def _hash_rows(text: str) -> int | tuple[int, ...]:
    try:
        return tuple(map(int, text.split(","))) if "," in text else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: a number of rows, or R1,R2,... of the tables") from None


def _add_rows(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dense",
        choices=("log1p", "log3", "minmax", "none"),
        default=SUPPRESS,
        help="transform of the integers: log(x + 1), NVIDIA's log(x + 3), PaddleRec's scaling (default log1p)",
    )
    parser.add_argument(
        "--bins", action="store_true", help="also give each integer as a category: floor(ln(x)^2) above 2, else itself"
    )
    parser.add_argument(
        "--on-bad-row",
        choices=("error", "skip", "null"),
        default="error",
        help="a bad row ends the work, is left out, or its bad fields count as missing (default %(default)s)",
    )
    parser.add_argument("--no-shuffle", action="store_true", help="keep the training rows in file order")
    parser.add_argument("--seed", type=int, default=SUPPRESS, help="of the shuffle and of random splits (default 0)")
    parser.add_argument("--memory", type=_bytes, default="2GB", help="memory to keep to (default %(default)s)")


def _bytes(text: str) -> int:
    """A number of bytes such as 2GB, 500MB or 1.5GiB."""
    match = re.fullmatch(r"([0-9.]+) *(?:([KMGT])(i?)B?)?", text.strip(), re.IGNORECASE)
    try:
        number, unit, binary = match.groups() if match else ("", None, None)
        return int(float(number) * (1024 if binary else 1000) ** (" KMGT".index((unit or " ").upper())))
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write for example 2GB") from None


def _prepare(options: argparse.Namespace) -> int:
    from dlrm_dist.data.prepare import prepare

    there = options.out.exists()
    try:
        info = prepare(options.sources, options.out, _prepare_options(options))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    if there:
        print(f"{options.out}: made before from the same sources in the same way; nothing to do")
    for name, split in info.splits.items():
        print(f"{options.out}: {name} {split.rows:,} rows, {split.clicks / max(1, split.rows):.1%} clicks")
    if info.bad_rows:
        reasons = ", ".join(f"{name} {count:,}" for name, count in info.bad_rows.items())
        print(f"{options.out}: {info.num_bad_rows:,} bad rows: {reasons}")
    bounded = [category.rows for category in info.categories if not category.unbounded]
    raw = len(info.categories) - len(bounded)
    print(f"{options.out}: {sum(bounded):,} ids in {len(bounded)} columns{f', raw ids in {raw}' if raw else ''}")
    return 0


def _prepare_options(options: argparse.Namespace) -> "PrepareOptions":
    from dlrm_dist.data.options import PrepareOptions

    named = {name: getattr(options, name) for name in _WITHOUT_DEFAULT if hasattr(options, name)}
    return PrepareOptions(
        format=options.format,
        valid=tuple(options.valid),
        test=tuple(options.test),
        split=options.split,
        vocabulary=options.vocabulary,
        schema=options.schema,
        bins=options.bins,
        on_bad_row=options.on_bad_row,
        shuffle=not options.no_shuffle,
        memory=options.memory,
        named=tuple(named),
        **named,
    )


def _add_result(parser: argparse.ArgumentParser) -> None:
    parser.description = "The final figures of a run: AUC, samples/s, and where it lies."
    parser.add_argument("file", type=Path, help="the run's result.json")
    parser.set_defaults(run=_result)


def _result(options: argparse.Namespace) -> int:
    from dlrm_dist import runfolder

    print(runfolder.describe(runfolder.read_result(options.file)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

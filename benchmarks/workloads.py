"""The models and batches that `step.py` and `infer.py` measure, as words for the project's trainer and for a peer's."""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

from dlrm_dist.data.law import NAMED_CARDINALITIES, Law
from dlrm_dist.data.schema import GROUP_ROWS, LANES, DatasetInfo, read_info
from dlrm_dist.data.synthetic_dataset import write_dataset
from dlrm_dist.data.writer import Layout

_MULTI_HOT = (3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1)
_VALID_ROWS = 1024


@dataclass(frozen=True)
class Workload:
    """A model, its optimizer, its global batch; ids are uniform, the hardest case for caches."""

    table_rows: tuple[int, ...]
    dim: int = 16
    bottom: tuple[int, ...] = (512, 256, 64, 16)
    top: tuple[int, ...] = (512, 256, 1)
    sparse: str = "sgd"
    dense: str = "sgd"
    learning_rate: float = 0.1
    batch: int = 2048
    group_rows: int = GROUP_ROWS
    multi_hot: tuple[int, ...] | None = None
    is_dcn: bool = False

    @property
    def stripe_steps(self) -> int:
        """Steps between one of the loader's reads and the next."""
        return max(1, LANES * self.group_rows // self.batch)

    @property
    def warm_up(self) -> int:
        """Steps before the clock starts: the first read, begun before the first step, ends within them."""
        return max(1, self.stripe_steps // 4)

    def steps(self, stripes: int) -> int:
        """Steps of a run that measures so many whole stripes, each with one read in it."""
        return self.warm_up + stripes * self.stripe_steps

    def dataset(self, folder: Path, stripes: int) -> DatasetInfo:
        """The training rows of such a run, and a stripe to read ahead; made at `folder` unless it is there."""
        if (folder / "dataset.json").exists():
            return read_info(folder)
        train = (stripes + 2) * LANES * self.group_rows
        total = train + _VALID_ROWS
        law = Law(tuple(rows - 1 for rows in self.table_rows), exponent=0.0)  # a table has a row for missing values too
        split = f"{train}/{total},{_VALID_ROWS}/{total},0"
        return write_dataset(folder, total, split, law=law, layout=Layout(LANES, self.group_rows))

    def model_words(self) -> list[str]:
        """The model for `dlrm_dist.config.load`."""
        words = ["--model.name", "dlrm_dcnv2" if self.is_dcn else "dlrm", "--model.embedding_dim", str(self.dim)]
        words += ["--model.bottom_mlp", _listed(self.bottom), "--model.top_mlp", _listed(self.top)]
        words += ["--model.num_embeddings", _listed(self.table_rows)]
        return words + (["--data.expand_multi_hot", _listed(self.multi_hot)] if self.multi_hot else [])

    def train_words(self, stripes: int) -> list[str]:
        """Optimizer and loop for `dlrm_dist.config.load`, with a report at the end of the warm-up."""
        return [
            *("--optimizer.sparse", self.sparse, "--optimizer.dense", self.dense),
            *("--train.learning_rate", str(self.learning_rate), "--train.batch_size", str(self.batch)),
            *("--train.epochs", "1", "--train.max_steps", str(self.steps(stripes))),
            *("--train.log_every", str(self.warm_up)),
        ]

    def peer_words(self, ranks: int, stripes: int) -> list[str]:
        """The same for torchrec_dlrm's trainer: its batch is a rank's; it has Adagrad, but not by rows."""
        words = [
            *("--embedding_dim", str(self.dim), "--num_embeddings_per_feature", _listed(self.table_rows)),
            *("--dense_arch_layer_sizes", _listed(self.bottom), "--over_arch_layer_sizes", _listed(self.top)),
            *("--batch_size", str(self.batch // ranks), "--limit_train_batches", str(self.steps(stripes))),
            *("--limit_val_batches", "1", "--limit_test_batches", "1", "--learning_rate", str(self.learning_rate)),
            *("--interaction_type", "dcn" if self.is_dcn else "original"),
        ]
        if self.multi_hot:
            words += ["--multi_hot_sizes", _listed(self.multi_hot), "--multi_hot_distribution_type", "uniform"]
        return words + ([] if self.sparse == "sgd" else ["--adagrad"])


_KAGGLE = Workload((38_462,) * 26)
WORKLOADS = {
    "kaggle": _KAGGLE,
    "kaggle_adagrad": replace(_KAGGLE, sparse="adagrad", dense="adagrad", learning_rate=0.01),
    "dcnv2": Workload(
        NAMED_CARDINALITIES["mlperf"],
        dim=128,
        bottom=(512, 256, 128),
        top=(1024, 1024, 512, 256, 1),
        sparse="rowwise_adagrad",
        dense="adagrad",
        learning_rate=0.004,
        group_rows=64,  # a stripe of 24,576 rows, where the usual one would take a CPU many minutes
        multi_hot=_MULTI_HOT,
        is_dcn=True,
    ),
}
"""Facebook's Kaggle model over a million rows in all, the same with Adagrad, and MLPerf's DLRM-DCNv2."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that choose a workload, ranks, threads and precision."""
    parser.add_argument("--workload", choices=tuple(WORKLOADS), default="kaggle")
    parser.add_argument("--rows-cap", type=int, default=1_000_000, help="most rows of a table")
    parser.add_argument("--batch-size", type=int, help="global; the workload's own when not given")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of each rank")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the dense layers")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run? The figures mean nothing")


def chosen(options: argparse.Namespace) -> Workload:
    """The workload of the options."""
    found = WORKLOADS[options.workload]
    if options.quick:
        found = replace(found, batch=128, group_rows=2)
        options.rows_cap, options.repeats = 100, 1
    if options.batch_size:
        found = replace(found, batch=options.batch_size)
    return replace(found, table_rows=tuple(min(rows, options.rows_cap) for rows in found.table_rows))


def precision_words(precision: str) -> list[str]:
    """The precision for `dlrm_dist.config.load`."""
    return [] if precision == "fp32" else ["--train.precision", precision]


def _listed(values: tuple[int, ...]) -> str:
    return ",".join(map(str, values))

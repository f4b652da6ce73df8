"""The sections of a run's configuration: one frozen model per TOML table, each key with its meaning and limits."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
Steps = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Dim = Annotated[int, Field(gt=0, multiple_of=4)]
ShardingName = Literal[
    "data_parallel",
    "table_wise",
    "row_wise",
    "column_wise",
    "table_row_wise",
    "table_column_wise",
    "grid_shard",
]


class Section(BaseModel):
    """A TOML table: frozen, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DataSection(Section):
    """Where the rows come from."""

    path: Path = Path("data/planted")
    """Folder of a prepared dataset (the output of `dlrm-dist prepare`)."""
    planted_rows: Annotated[int, Field(ge=100)] | None = None
    """Rows of planted clicks to make at `data.path` when nothing is there. Not given: only at the default path,
    1,200,000."""
    last_batch: Literal["pad", "drop"] = "pad"
    """What becomes of an epoch's last, partial training batch. Evaluation always pads, so that no row is lost."""
    expand_multi_hot: tuple[Positive, ...] | None = None
    """Ids to make of a sample's one id in each category (MLPerf's DLRM-DCNv2): the first is its own, the others are
    drawn once per id. Not given: one."""


_WITH_MLPS = ("dlrm", "dlrm_dcnv2", "dlrm_projection", "paddlerec")
_READ_BY = {
    "bottom_mlp": _WITH_MLPS,
    "top_mlp": _WITH_MLPS,
    "cross_layers": ("dlrm_dcnv2", "dcn"),
    "cross_rank": ("dlrm_dcnv2",),
    "projection_branch1": ("dlrm_projection",),
    "projection_branch2": ("dlrm_projection",),
    "deep_mlp": ("dcn",),
    "cross": ("dcn",),
    "batch_norm": ("dlrm", "dlrm_dcnv2", "dlrm_projection", "dcn"),
}
"""The models that a key means something to; the others do not read it."""


class ModelSection(Section):
    """The network."""

    name: Literal["dlrm", "dlrm_dcnv2", "dlrm_projection", "dcn", "paddlerec"] = "dlrm"
    """Which model: `dlrm` is arXiv 1906.00091 with pairwise dot interaction; `dlrm_dcnv2` is MLPerf's, with a low-rank
    cross network (arXiv 2008.13535) in its place, `dlrm_projection` with products of two MLPs' outputs; `dcn` is Deep &
    Cross (arXiv 1708.05123); `paddlerec` is PaddleRec's DLRM: one table, batch normalisation, two logits."""
    num_embeddings: tuple[Positive, ...] | None = None
    """Rows of each table, in the order of the categories. Not given: the dataset's vocabularies. Given, plans can be
    made without a dataset."""
    multi_hot_sizes: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    """Ids a sample has in each category, on average, for the planner; not given: `data.expand_multi_hot`, or 1."""
    num_dense: Positive = 13
    """Dense features, where there is no dataset to say it."""
    cross_layers: Positive = 3
    """Layers of the cross network of `dlrm_dcnv2` and of `dcn`."""
    cross_rank: Positive = 512
    """Rank of the layers of `dlrm_dcnv2`'s cross network."""
    projection_branch1: tuple[Positive, ...] = (64, 128)
    """Widths of the first MLP of `dlrm_projection`'s interaction; the last is a multiple of `model.embedding_dim`."""
    projection_branch2: tuple[Positive, ...] = (64, 128)
    """Widths of the second."""
    table_precision: Literal["fp32", "fp16"] = "fp32"
    """Precision of the tables' weights; the optimizer's state is fp32. On a GPU, FBGEMM rounds fp16 weights at random,
    up or down in proportion, so that small updates are not lost."""
    embedding_dim: Dim = 16
    """Width of the embeddings, and so of the bottom MLP's output; the kernels move four numbers at once."""
    embedding_dims: tuple[Dim, ...] | None = None
    """Width of each category's embedding, for `dcn` only: others need one width. Not given: `model.embedding_dim`."""
    shared_tables: tuple[str, ...] = ()
    """Groups of categories that share a table, each as `C1+C2`, or `all` alone; their ids must be of one space.
    `paddlerec` has one table for all, whether this says it or not."""
    bottom_mlp: tuple[Positive, ...] = (64, 16)
    """Widths of the bottom MLP's layers; the last must equal `model.embedding_dim`."""
    top_mlp: tuple[Positive, ...] = (128, 64, 1)
    """Widths of the top MLP's layers; the last must be 1 (the logit), or 2 with `paddlerec` (one logit a class)."""
    deep_mlp: tuple[Positive, ...] = (128, 64)
    """Widths of the deep network's layers of `dcn`."""
    cross: Literal["vector", "matrix"] = "vector"
    """Weights of a layer of `dcn`'s cross network: a vector is arXiv 1708.05123, a whole matrix the second version,
    arXiv 2008.13535."""
    batch_norm: bool = False
    """Batch normalisation before the ReLU of hidden layers of all MLPs; `paddlerec` has one of its own, always."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the columns behind each hidden layer of the top or deep MLP that a training step drops."""
    managed_collisions: tuple[str, ...] = ()
    """Categories whose ids have no bound (`dlrm-dist prepare --raw`). Each id gets a row of its own, rows of the least
    used ids are given to new ones, ids without a row share one; tables are row_wise, on as many ranks as at first."""
    managed_rows: Annotated[int, Field(gt=1)] = 1_000_000
    """Rows of each of their tables, where `model.num_embeddings` does not say it."""
    eviction_policy: Literal["lfu", "lru", "distance_lfu"] = "lfu"
    """Whose rows go first: of the ids that came least often, longest ago, or by count over age."""
    eviction_interval: Positive = 100
    """Steps between two counts of the ids that came, when new ones get rows; until then they share one."""
    init_from: Path | None = None
    """Weights to start from: a run, one of its checkpoints, or what `dlrm-dist checkpoint unshard` wrote. Rows of
    tables are matched by the value of the category, so the vocabulary may have changed."""

    @model_validator(mode="after")
    def _dimensions_fit(self) -> Self:
        if self.name in _WITH_MLPS and (not self.bottom_mlp or self.bottom_mlp[-1] != self.embedding_dim):
            raise ValueError(
                f"model.bottom_mlp must end with model.embedding_dim ({self.embedding_dim}) so that dense and sparse "
                f"vectors can be multiplied; it is {list(self.bottom_mlp)}"
            )
        logits, what = (2, "the logits of no click and of click") if self.name == "paddlerec" else (1, "the logit")
        if self.name in _WITH_MLPS and (not self.top_mlp or self.top_mlp[-1] != logits):
            raise ValueError(f"model.top_mlp must end with {logits}, {what}; it is {list(self.top_mlp)}")
        if self.name == "paddlerec" and self.dropout:
            raise ValueError(
                f"model.dropout is {self.dropout}, but paddlerec has none; leave it out, or choose another model.name"
            )
        if self.name == "dcn" and not self.deep_mlp:
            raise ValueError("model.deep_mlp must have a layer at least; it has none")
        if self.name == "dlrm_projection":
            for key in ("projection_branch1", "projection_branch2"):
                self._check_branch(key, getattr(self, key))
        return self

    @property
    def unread(self) -> tuple[str, ...]:
        """Keys that are not the default's, and that this model does not read: `--model.name` may change a recipe's."""
        fields = type(self).model_fields
        given = (key for key in _READ_BY if getattr(self, key) != fields[key].default)
        return tuple(f"model.{key}" for key in given if self.name not in _READ_BY[key])

    @property
    def has_batch_norm(self) -> bool:
        """Whether statistics of the batch are part of the model."""
        return self.batch_norm or self.name == "paddlerec"

    def _check_branch(self, key: str, widths: tuple[int, ...]) -> None:
        if not widths or widths[-1] % self.embedding_dim:
            raise ValueError(
                f"model.{key} must end with a multiple of model.embedding_dim ({self.embedding_dim}), for its output "
                f"is cut into vectors of that width; it is {list(widths)}"
            )

    @model_validator(mode="after")
    def _tables_fit(self) -> Self:
        if self.embedding_dims and self.name != "dcn":
            raise ValueError(
                f"model.embedding_dims is for dcn, and model.name is {self.name}, which needs one width; use "
                "model.embedding_dim"
            )
        if self.name == "paddlerec" and self.shared_tables not in ((), ("all",)):
            raise ValueError(
                f"model.shared_tables is {list(self.shared_tables)}, but paddlerec has one table for all; leave it out"
            )
        sizes = {"multi_hot_sizes": self.multi_hot_sizes, "embedding_dims": self.embedding_dims}
        for key, given in sizes.items():
            if self.num_embeddings and given and len(self.num_embeddings) != len(given):
                raise ValueError(
                    f"model.{key} has {len(given)} values for the {len(self.num_embeddings)} "
                    "tables of model.num_embeddings; give one for each"
                )
        return self


class OptimizerSection(Section):
    """How the parameters are updated."""

    sparse: Literal["sgd", "adagrad", "rowwise_adagrad", "adam"] = "rowwise_adagrad"
    """Optimizer of the embedding tables, fused into the backward. `adam` is fused on CUDA; on CPU, and wherever all
    tables are data-parallel (`sharding.types`), it is PyTorch's, which also moves the rows that no batch looks up."""
    dense: Literal["sgd", "adagrad", "adam"] = "adagrad"
    """Optimizer of the MLPs."""
    sparse_learning_rate: Rate | None = None
    """Learning rate of the tables; `train.learning_rate` when not given."""
    dense_learning_rate: Rate | None = None
    """Learning rate of the MLPs; `train.learning_rate` when not given."""
    eps: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-8
    """Added to the root of the second moment by Adagrad and Adam."""
    sparse_weight_decay: Rate = 0.0
    """L2 of the rows that a batch looks up, in that step: so much of a row is added to its gradient. The kernel of
    `rowwise_adagrad` alone does that, in tables that are not data-parallel."""
    table_weight_decay: Rate = 0.0
    """L2 of whole tables in every step, as if table_weight_decay / 2 x ||table||^2 were added to the loss (FuxiCTR's
    `embedding_regularizer`); for data-parallel tables (`sharding.types`), with any optimizer."""
    dense_weight_decay: Rate = 0.0
    """The same L2 of all other parameters, biases too (FuxiCTR's `net_regularizer`)."""
    clip_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Largest norm of the gradient of all that is replicated, MLPs and data-parallel tables together, without weight
    decay; beyond, it is scaled down to it. Other tables are updated in the backward and escape it. Not given: none."""


TIMED_DECAYS = ("polynomial", "cosine", "step")
"""Decays by the step alone."""
_DECAYS_WITH = {
    "start": TIMED_DECAYS,
    "steps": TIMED_DECAYS,
    "power": ("polynomial",),
    "end_factor": (*TIMED_DECAYS, "plateau"),
    "factor": ("step", "plateau"),
    "patience": ("plateau",),
}
"""The decays that a key has a meaning for; with another, what is not its default is a mistake."""


class ScheduleSection(Section):
    """How the learning rates change, and when training ends early."""

    warmup_steps: Steps = 0
    """Steps over which the learning rates rise linearly to their full value."""
    decay: Literal["none", "polynomial", "cosine", "step", "plateau"] = "none"
    """How they fall: by a `power` of the time left, by half a cosine, by `factor` each `steps` steps, or by `factor`
    where validation does not improve."""
    start: Steps | None = None
    """Step at which polynomial, cosine or step decay begins; not given: behind the warm-up."""
    steps: Positive | None = None
    """Steps of a polynomial or cosine decay (not given: to the end of the run), or between the drops of `step`."""
    power: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2.0
    """Of the polynomial decay; 2 is DLRM's and MLPerf's."""
    end_factor: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """What the learning rates are multiplied by at the end of a decay, and held at; the least for `step`, `plateau`."""
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """What a drop of `step` or `plateau` multiplies them by."""
    patience: Positive = 1
    """Evaluations in a row without improvement that make a drop of `plateau`."""
    stop_patience: Positive | None = None
    """Evaluations in a row without improvement that end the run; not given: none do."""
    target_auc: Annotated[float, Field(gt=0, le=1)] | None = None
    """AUC on `eval.split` that ends the run (MLPerf's is .80275); not given: none does."""
    min_delta: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-6
    """By how much the AUC on `eval.split` has to pass the best one to be an improvement."""

    @model_validator(mode="after")
    def _keys_agree(self) -> Self:
        for key, decays in _DECAYS_WITH.items():
            value = getattr(self, key)
            if value != type(self).model_fields[key].default and self.decay not in decays:
                raise ValueError(
                    f"schedule.{key} is {value}, and schedule.decay is {self.decay}; leave it out, or choose "
                    f"{' or '.join(decays)}"
                )
        if self.decay == "step" and self.steps is None:
            raise ValueError("schedule.decay is step: schedule.steps must say how many steps lie between two drops")
        if self.start is not None and self.start < self.warmup_steps:
            raise ValueError(
                f"schedule.start is {self.start}, inside the warm-up of schedule.warmup_steps {self.warmup_steps}; "
                "leave it out to begin behind the warm-up"
            )
        return self


class ShardingSection(Section):
    """How the tables are placed."""

    types: tuple[ShardingName, ...] = ("table_wise", "row_wise")
    """Sharding types the planner may choose from."""
    comm_precision: Literal[
        "fp32", "fp16", "bf16", "int8", "fp16_between_hosts", "bf16_between_hosts", "int8_between_hosts"
    ] = "fp32"
    """Precision in which embeddings travel between ranks; but for fp32, gradients travel in bf16. `int8` works with
    table_wise, column_wise, table_column_wise and data_parallel only. `_between_hosts`: only exchanges that
    cross hosts: all of a whole or column-wise table's, the second stage of a table_row_wise one's (its sum inside a
    host keeps fp32), none of a row_wise one's; gradients of replicated weights go between hosts in bf16."""
    plan: Path | None = None
    """A plan file (of `dlrm-dist plan make`) to train by; not given: a plan is made at the start."""
    cluster: str | None = None
    """The cluster a plan made at the start assumes, such as `h100` or a TOML file; not given: by this machine."""
    constraints: Path | None = None
    """A TOML file of constraints by table; it takes the place of `sharding.types`."""
    hbm_gib: Annotated[float, Field(gt=0)] | None = None
    """Device memory a rank may fill with tables, in GiB; not given: what it has (CPU: its share of RAM)."""


class TrainSection(Section):
    """The loop."""

    batch_size: Positive = 2048
    """Global batch: rows of one step over all ranks. It stays the same whatever the number of ranks."""
    epochs: Positive = 2
    """Times each training row is visited."""
    max_steps: Positive | None = None
    """Stop after that many steps in all."""
    learning_rate: Rate = 0.02
    """Learning rate of tables and MLPs alike, unless the optimizer section says otherwise."""
    micro_batches: Positive = 1
    """Parts of a rank's batch that go through the dense layers one after another, so that the activations of one are in
    memory: gradients are summed, tables are looked up and updated once a step, the numbers are those of one part;
    but each part draws its own dropout."""
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    """Seed of the initial weights and of the order of the rows."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Arithmetic of the dense layers; weights, tables, sums of gradients and the loss stay fp32. `bf16` is fast where
    the processor has instructions for it (AMX, AVX512-BF16, tensor cores), `tf32` is for GPUs."""
    log_every: Positive = 50
    """Steps between two progress lines (and lines of metrics.jsonl)."""
    profile: bool = False
    """Profile the last 3 steps before each progress line: metrics.jsonl then tells a step's time by part and what
    bounds it, and runs/NAME/trace/ has the first ones of each rank for a trace viewer."""
    mlperf_log: bool = False
    """Write MLPerf's log lines to runs/NAME/mlperf.log, for DLRM-DCNv2; section mlperf says whose they are. Needs the
    package mlperf-logging."""
    resume: Literal["no", "auto"] = "no"
    """`auto`: go on from the newest complete checkpoint of the run `run.name`, or start it when there is none."""


class CheckpointSection(Section):
    """What is kept of a run while it trains."""

    model_config = ConfigDict(serialize_by_alias=True)  # `async` is a word of the language

    every: Steps = 0
    """Steps between two checkpoints; 0: none by steps. One is always saved at the end, and when the run is asked to
    stop (SIGTERM, SIGINT)."""
    every_minutes: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 15.0
    """Minutes between two checkpoints; 0: none by the clock."""
    each_epoch: bool = False
    """Save at the end of each epoch too, and keep all of these: `dlrm-dist evaluate RUN DATASET --each-checkpoint` then
    scores each epoch's model."""
    keep: Positive = 3
    """How many of the newest checkpoints are kept; the best by AUC on `eval.split` is kept beside them."""
    asynchronous: bool = Field(default=True, alias="async")
    """Write while training goes on, from a copy in host memory as large as the rank's part; false: no copy, and
    training waits. The last checkpoint of a run is always waited for."""


class EvalSection(Section):
    """Scoring during and after training."""

    split: str = "valid"
    """Split that is scored at `eval.every` and at the end."""
    every: Steps = 0
    """Steps between two evaluations; 0: at the end of each epoch only."""
    batch_size: Positive = 8192
    """Global batch of the evaluation."""


class MetricsSection(Section):
    """What a score is made of."""

    exact: bool = False
    """Areas under curves without bins: scores are ordered in a temporary folder under the run's, which all hosts must
    share, 32 bytes a row. Else their error is bounded, and the bound is reported."""
    group_by: str | None = None
    """Also a grouped AUC: within rows of the same id in this category (the first id, where it has lists), weighted by
    impressions. Ordered on disk as with `metrics.exact`, and exact."""


class RuntimeSection(Section):
    """The machine."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: CUDA where there is a GPU for each local rank, else CPU with gloo."""
    threads: Annotated[int, Field(gt=0, le=4096)] | Literal["auto"] = "auto"
    """Compute threads of a rank; `auto`: the cores that are to be used here (a container's quota counts), shared by its
    ranks."""
    timeout_s: Annotated[int, Field(gt=0, le=7 * 86_400)] = 300
    """A collective that takes longer ends the run."""
    grace_s: Annotated[int, Field(gt=0, le=86_400)] = 120
    """Seconds that a run has to save and end when it is asked to stop; then the launcher kills its ranks."""


class MlperfSection(Section):
    """What MLPerf's log says of who runs it (`train.mlperf_log`)."""

    organization: Annotated[str, Field(min_length=1)] = "none"
    """Who submits."""
    platform: Annotated[str, Field(min_length=1)] = "none"
    """On what machine."""
    division: Literal["closed", "open"] = "closed"
    """By which rules."""
    status: Literal["onprem", "cloud", "research"] = "research"
    """Whether one can buy or rent such a machine."""


class RunSection(Section):
    """What the run leaves behind."""

    folder: Path = Path("runs")
    """Folder of all runs."""
    name: str = ""
    """Name of this run's folder; date and time when empty. An existing run is never overwritten."""

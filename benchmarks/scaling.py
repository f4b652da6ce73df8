"""What large models need from 8 to 4,096 GPUs, on paper: memory, predicted step, what bounds it, by way of sharding.

`python benchmarks/scaling.py [--model dcnv2 --model ten_tb] [--gpu h100] [--least 8] [--most 4096] [--json]`:
plans each model for each size in each way (`--way`: in one) and predicts its step; then the same prediction beside
published runs. No GPU is needed.

Ways: whole tables (and replicated ones); also cut by rows over all ranks; also by rows inside a host; what these put
into HBM may lie in host memory behind a cache, where nothing else fits; and replica groups (TorchRec's 2-D parallelism,
which this trainer does not apply): a group of ranks holds all tables and takes its part of the batch, and the groups'
tables are averaged every `SYNC_EVERY` steps.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import harness
from tqdm import tqdm

from dlrm_dist import config as config_module
from dlrm_dist.errors import NothingFitsError
from dlrm_dist.models.shape import model_shape
from dlrm_dist.planning import check, step
from dlrm_dist.planning.cluster import GIB, Cluster, load_cluster
from dlrm_dist.planning.constraints import Rule
from dlrm_dist.planning.inputs import request_of
from dlrm_dist.planning.plan_file import PlanFile
from dlrm_dist.planning.planner import Request, make_plan
from dlrm_dist.planning.subject import Subject, make_subject

WHOLE, ROWS, HOST_ROWS = "table_wise", "row_wise", "table_row_wise"
WAYS: dict[str, tuple[str, ...]] = {
    "whole tables": (WHOLE, "data_parallel"),
    "and by rows": (WHOLE, "data_parallel", ROWS),
    "and by rows in a host": (WHOLE, "data_parallel", ROWS, HOST_ROWS),
}
EVERYTHING = WAYS["and by rows in a host"]
HOST_ROWS_ALONE = "by rows in a host alone"
"""For thousands of GPUs, where the planner takes hours over all types; asked for by `--way`."""
HOST_MEMORY = "the same, in host memory"
GROUPS = "the same, replica groups"
SIZES = (8, 16, 32, 64, 128, 256, 512, 1024, 4096)
CONFIG = harness.ROOT / "launch/configs/mlperf_dcnv2.toml"
DCNV2_BATCH = 65_536
MOST_GROUPS = 64
SYNC_EVERY = 100
"""Steps between two averages of the replica groups' tables; assumed."""
MESSAGE_US = 1.0
"""Of each message of an all-to-all, assumed: the clusters' start-up time of a collective knows no number of ranks."""
EXCHANGES = 4
"""All-to-alls of a step: lengths, ids, embeddings, gradients."""

TEN_TB = ((800_000_000, 20, 8.0), (95_000_000, 40, 2.0), (5_000_000, 40, 1.0))
"""Rows of a table, number of such tables, ids of a sample: 20 billion rows x 128 in fp32 are 10.24 TB."""
ROWS_OF_A_GPU = 1024
"""Of the large model's batch, whatever the number of GPUs."""
COLUMNS = (
    *("HBM GiB", "host GiB", "imbalance", "serial ms", "overlapped ms"),
    *("million samples/s, serial", "overlapped", "bound by", "messages ms"),
)
"""Memory is the fullest GPU's; messages are not in the steps' times."""
MODELS = ("dcnv2", "ten_tb")


@dataclass(frozen=True)
class Published:
    """A run that others have published."""

    name: str
    cluster: str
    batch_size: int
    precision: str
    samples_per_s: float
    hbm_gb_s: float | None = None
    """Where the GPUs were another version than the cluster file's."""


PUBLISHED = (
    Published("MLPerf 4.0, HugeCTR, 8 H200", "h200:1x8", 55_296, "bf16", 15.16e6),
    Published("MLPerf, HugeCTR, 128 H100", "h100:16x8", 135_168, "bf16", 67.9e6),
    Published("torchrec_dlrm, 8 A100 of 40 GB", "a100:1x8", 16_384, "tf32", 901_120, 1555),
    Published("torchrec_dlrm, 8 A100 of 40 GB", "a100:1x8", 131_072, "tf32", 1_190_128, 1555),
)
"""DLRM-DCNv2 all of them. MLPerf's logs give the batches of their learning rates; torchrec_dlrm's README the others."""


@dataclass(frozen=True)
class Model:
    """What is planned, and how."""

    subject: Subject
    request: Request

    def planned(self, cluster: Cluster, batch_size: int, way: str) -> PlanFile | None:
        """The planner's plan, or None where nothing fits."""
        types = (HOST_ROWS,) if way == HOST_ROWS_ALONE else WAYS.get(way, EVERYTHING)
        largest = max(table.rows * table.bytes_per_row for table in self.subject.tables)
        if types == WAYS["whole tables"] and largest > max(cluster.memory_bytes()[0], 1):
            return None  # at once: the planner tries minutes for what cannot be
        kernels = ("fused", "fused_uvm_caching") if way == HOST_MEMORY else None
        rules = (Rule(pattern="*", sharding_types=types, compute_kernels=kernels),) if kernels else None
        request = replace(self.request, batch_size=batch_size, sharding_types=types, rules=rules)
        try:
            return make_plan(self.subject, cluster, request)
        except NothingFitsError:
            return None


@dataclass(frozen=True)
class Point:
    """A model on a cluster, sharded in a way."""

    way: str
    cluster: Cluster
    batch_size: int
    plan: PlanFile | None
    sync_ms: float = 0.0
    """Of a step, its share of averaging the replica groups."""

    def values(self) -> dict[str, Any]:
        """As a row."""
        row: dict[str, Any] = {"GPUs": self.cluster.world_size, "batch": self.batch_size, "way": self.way}
        if self.plan is None:
            return {**row, "tables": "do not fit", **dict.fromkeys(COLUMNS, "")}
        predicted = step.predict(self.plan)
        serial, overlapped = (each + self.sync_ms for each in (predicted.serial, predicted.overlapped))
        kinds = Counter(sharding.sharding_type for _, sharding in self.plan.placed())
        parts = predicted.resources() | {"averaging": self.sync_ms}
        figures: tuple[Any, ...] = (
            max(check.hbm_use(self.plan)) / GIB,
            max(check.ddr_use(self.plan)) / GIB,
            predicted.imbalance,
            serial,
            overlapped,
            self.batch_size / serial / 1e3,
            self.batch_size / overlapped / 1e3,
            max(parts, key=lambda name: parts[name]),
            EXCHANGES * (self.plan.world_size - 1) * MESSAGE_US / 1e3,
        )
        tables = " ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        return {**row, "tables": tables, **dict(zip(COLUMNS, figures, strict=True))}


def main() -> int:
    parser = harness.parser(__doc__, 1)
    parser.add_argument("--model", action="append", choices=MODELS)
    parser.add_argument("--gpu", default="h100", help="a cluster's name or file")
    parser.add_argument("--least", type=int, default=SIZES[0], help="GPUs")
    parser.add_argument("--most", type=int, default=SIZES[-1], help="GPUs")
    parser.add_argument("--way", action="append", choices=(*WAYS, HOST_ROWS_ALONE, GROUPS), help="only this way")
    options = parser.parse_args()
    cluster = load_cluster(options.gpu)
    found: dict[str, list[dict[str, Any]]] = {}
    for name in options.model or MODELS:
        found[name] = []
        sizes = [size for size in SIZES if options.least <= size <= options.most]
        for point in points(name, cluster, sizes, options.way or (*WAYS, GROUPS)):
            found[name].append(point.values())
            if not options.json:
                lines = harness.table(found[name]).splitlines()
                heading = [f"\n{name} on {cluster.name}\n", *lines[:2]] if len(found[name]) == 1 else []
                print("\n".join([*heading, lines[-1]]), flush=True)
    rows = [beside(run) for run in PUBLISHED]
    if not options.json:
        print()
    harness.report(found if options.json else {}, rows, options.json)
    return 0


def points(name: str, cluster: Cluster, sizes: Sequence[int], ways: Sequence[str]) -> Iterator[Point]:
    """Each size in each way: DCNv2 with MLPerf's batch, the large model with one that grows with the GPUs."""
    model = model_of(name)
    for size in tqdm(sizes, disable=None):
        sized = cluster.resized(size // cluster.devices_per_host, cluster.devices_per_host)
        batch_size = DCNV2_BATCH if name == "dcnv2" else ROWS_OF_A_GPU * size
        plans = {way: model.planned(sized, batch_size, way) for way in (*WAYS, HOST_ROWS_ALONE) if way in ways}
        if plans and not any(plans.values()):
            plans[HOST_MEMORY] = model.planned(sized, batch_size, HOST_MEMORY)
        yield from (Point(way, sized, batch_size, plan) for way, plan in plans.items())
        if sized.hosts > 1 and GROUPS in ways:
            inside = HOST_ROWS_ALONE if HOST_ROWS_ALONE in ways else "and by rows in a host"
            yield grouped(model, sized, batch_size, inside)


def model_of(name: str, precision: str = "bf16") -> Model:
    """MLPerf's model, or one of the same layers with tables of 10 TB."""
    words = ["--config", str(CONFIG), "--train.precision", precision, "--sharding.comm_precision", "fp16"]
    if name == "ten_tb":
        rows = [str(rows) for rows, count, _ in TEN_TB for _ in range(count)]
        ids = [str(ids) for _, count, ids in TEN_TB for _ in range(count)]
        words += ["--model.num_embeddings", ",".join(rows), "--model.multi_hot_sizes", ",".join(ids)]
    config = config_module.load(words)
    shape = model_shape(config.data, config.model)
    return Model(make_subject(config.model, config.optimizer, shape), request_of(config))


def grouped(model: Model, cluster: Cluster, batch_size: int, way: str) -> Point:
    """Replica groups of the quickest size, by the serial step and the messages; `way`: inside a group."""
    found: list[tuple[float, Point]] = []
    hosts = max(1, cluster.hosts // MOST_GROUPS)
    while hosts < cluster.hosts:
        group, replicas = cluster.resized(hosts, cluster.devices_per_host), cluster.hosts // hosts
        plan = model.planned(group, batch_size // replicas, way)
        if plan:
            link = cluster.value("inter_host_gb_s") * cluster.value("link_efficiency") * 1e6
            average_ms = 2 * (replicas - 1) / replicas * max(check.hbm_use(plan)) / link
            point = Point(f"{GROUPS} of {group.world_size}", cluster, batch_size, plan, average_ms / SYNC_EVERY)
            values = point.values()
            found.append((values["serial ms"] + values["messages ms"], point))
        hosts *= 2
    if not found:
        return Point(GROUPS, cluster, batch_size, None)
    return min(found, key=lambda each: each[0])[1]


def beside(run: Published) -> dict[str, Any]:
    """A published run and its prediction."""
    cluster = load_cluster(run.cluster)
    if run.hbm_gb_s:
        cluster = cluster.with_constant("hbm_gb_s", run.hbm_gb_s, "data sheet of the 40 GB version")
    plan = model_of("dcnv2", run.precision).planned(cluster, run.batch_size, "and by rows in a host")
    serial, overlapped = step.predict(plan).samples_per_s() if plan else (0.0, 0.0)
    return {
        "run": run.name,
        "batch": run.batch_size,
        "published million samples/s": run.samples_per_s / 1e6,
        "predicted, serial": serial / 1e6,
        "overlapped": overlapped / 1e6,
        "published over serial": run.samples_per_s / serial,
        "published over overlapped": run.samples_per_s / overlapped,
        "bound by": step.predict(plan).bound if plan else "",
    }


if __name__ == "__main__":
    sys.exit(main())

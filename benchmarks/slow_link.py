"""Training over a slow link between two hosts: the default plan, and plans by the cluster file of `dlrm-dist doctor`.

`python -m benchmarks.slow_link [--rate 200mbit] [--steps 60] [--repeats 3] [--work FOLDER] [--json]`, as root on Linux
with iproute2: two hosts of two ranks are network namespaces (benchmarks/hosts/namespaces.py) whose links carry no more
than `--rate`. The doctor examines them; then each way trains in turns, and its steps are set beside the prediction.
"""

import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.hosts import namespaces
from benchmarks.hosts.jobs import PORT, start_store
from benchmarks.hosts.namespaces import Host
from dlrm_dist.data.options import PrepareOptions
from dlrm_dist.data.prepare import prepare
from dlrm_dist.data.synthetic import write_clicks
from dlrm_dist.planning import plan_file, step

RANKS = 2
"""Of each host."""
PATIENCE_S = 300.0
WARM_UP = 10
"""Steps that are left out."""
ROWS = 60_000
MODEL = (
    *("--model.embedding_dim", "64", "--model.bottom_mlp", "64,64", "--model.top_mlp", "64,1"),
    *("--train.batch_size", "1024", "--optimizer.sparse", "sgd", "--optimizer.dense", "sgd"),
)
DEFAULT, WHOLE_AND_ROWS = "default plan", "table_wise,row_wise"
EVERY = f"{WHOLE_AND_ROWS},table_row_wise,data_parallel"


@dataclass(frozen=True)
class Way:
    """How the tables are placed and the exchange done."""

    types: str
    by_doctor: bool
    precision: str = "fp32"


WAYS = {
    DEFAULT: Way(WHOLE_AND_ROWS, by_doctor=False),
    "all types, cluster cpu": Way(EVERY, by_doctor=False),
    "all types, the doctor's cluster": Way(EVERY, by_doctor=True),
    "the same, fp16 between hosts": Way(EVERY, by_doctor=True, precision="fp16_between_hosts"),
    "the same, int8 between hosts": Way(EVERY, by_doctor=True, precision="int8_between_hosts"),
    "by rows in a host, int8 between hosts": Way("table_row_wise", by_doctor=True, precision="int8_between_hosts"),
}


class Hosts:
    """Two hosts, and a store on a third that is not limited."""

    def __init__(self, hosts: list[Host], work: Path) -> None:
        self._pair, self._store, self._work = hosts[:2], hosts[2], work
        self._runs = 0
        start_store(self._store)

    def launch(self, script: str, *words: object) -> str:
        """Run a script on two ranks of each host; gives the first host's output."""
        self._runs += 1
        launch = ["-m", "launch.elastic", "--nnodes", 2, "--nproc-per-node", RANKS, "--rdzv-backend", "c10d"]
        launch += ["--rdzv-endpoint", f"{self._store.address}:{PORT}", "--rdzv-id", f"job{self._runs}", script, *words]
        environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(harness.ROOT)}
        agents = [host.start(sys.executable, *map(str, launch), cwd=harness.ROOT, **environment) for host in self._pair]
        codes = [agent.wait(PATIENCE_S) for agent in agents]
        if any(codes):
            raise SystemExit(f"{script}: exit codes {codes}\n{agents[0].output[-3000:]}")
        return agents[0].output


def main() -> int:
    parser = harness.parser(__doc__, 3)
    parser.add_argument("--rate", default="200mbit", help="of each host's link, as tc takes it")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--way", action="append", choices=tuple(WAYS), help="only this; may be given again")
    parser.add_argument("--work", type=Path, help="folder for data, cluster file and runs; a temporary one else")
    options = parser.parse_args()
    reason = namespaces.why_not()
    if reason:
        parser.error(reason)
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).absolute()
        data = _clicks(work)
        with namespaces.hosts(work / "output", ("alpha", "beta", "gamma")) as hosts:
            for host in hosts[:2]:
                host.limit(options.rate)
            pair = Hosts(hosts, work)
            cluster = work / "cluster.toml"
            cluster.unlink(missing_ok=True)
            examined = pair.launch("launch/doctor.py", "--runtime.device", "cpu", "--storage", work, "--out", cluster)
            chosen = {name: WAYS[name] for name in options.way or WAYS}
            ways = {
                name: lambda way=way, name=name: _train(pair, work, data, cluster, way, options.steps)
                for name, way in chosen.items()
            }
            found = harness.interleaved(ways, options.repeats)
    rows = [_row(name, runs, found[next(iter(found))]) for name, runs in found.items()]
    harness.report({"rate": options.rate, "doctor": examined.splitlines()}, rows, options.json)
    return 0


def _train(pair: Hosts, work: Path, data: Path, cluster: Path, way: Way, steps: int) -> dict[str, Any]:
    """A run's median step, and what its plan predicts by the doctor's file."""
    name = f"run{sum(1 for _ in (work / 'runs').glob('*')) if (work / 'runs').is_dir() else 0}"
    words = ["--data.path", data, "--run.folder", work / "runs", "--run.name", name, *MODEL]
    words += ["--runtime.device", "cpu", "--runtime.threads", 1, "--train.max_steps", steps, "--train.log_every", 1]
    words += ["--sharding.types", way.types, "--sharding.comm_precision", way.precision]
    words += ["--sharding.cluster", cluster] if way.by_doctor else []
    pair.launch("launch/train.py", *words)
    run = work / "runs" / name
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    took = [line["step_ms"] for line in lines if line["split"] == "train" and line["step"] > WARM_UP]
    plan = plan_file.read(run / "plan.json")
    kinds = [sharding.sharding_type for _, sharding in plan.placed()]
    return {
        "step_ms": statistics.median(took),
        "predicted_ms": step.predict(plan).serial,
        "tables": " ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds))),
        "auc": json.loads((run / "result.json").read_text())["auc"],
    }


def _row(name: str, runs: list[dict[str, Any]], base: list[dict[str, Any]]) -> dict[str, Any]:
    took = [run["step_ms"] for run in runs]
    ratios = [first["step_ms"] / run["step_ms"] for first, run in zip(base, runs, strict=True)]
    return {
        "way": name,
        "tables": runs[0]["tables"],
        "ms a step (least to most)": f"{statistics.median(took):.1f} ({min(took):.1f} to {max(took):.1f})",
        "as fast as the first": statistics.median(ratios),
        "predicted ms, serial": runs[0]["predicted_ms"],
        "AUC": round(statistics.median(run["auc"] for run in runs), 4),
    }


def _clicks(work: Path) -> Path:
    data = work / "data"
    if not data.exists():
        work.mkdir(parents=True, exist_ok=True)
        for seed, (split, rows) in enumerate((("train", ROWS), ("valid", 4000))):
            write_clicks(work / f"{split}.tsv", rows, seed=seed)
        prepare([work / "train.tsv"], data, PrepareOptions("kaggle", valid=(work / "valid.tsv",), min_count=1))
    return data


if __name__ == "__main__":
    sys.exit(main())

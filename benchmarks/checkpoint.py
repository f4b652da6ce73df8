"""What saving and loading cost: seconds and bytes by the size of the tables, and what saving takes from training.

`python benchmarks/checkpoint.py [--gigabytes 0.1,1,4] [--json]`: 2 ranks, eight row-wise tables, row-wise Adagrad.
`blocked` is what training waits for an asynchronous save (the copy into host memory), `written` until it is complete;
`extra` is what a save adds to the time of the same number of steps, and `share` that at one save a minute.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_dist.checkpoint import folder as folders
from dlrm_dist.checkpoint import state
from dlrm_dist.checkpoint.folder import Progress
from dlrm_dist.checkpoint.keeper import Checkpoints, Origin, Position
from dlrm_dist.config import Config
from dlrm_dist.data.batch import ClickBatch
from dlrm_dist.models.build import build_model
from dlrm_dist.models.shape import Feature, ModelShape
from dlrm_dist.models.task import ClickTask
from dlrm_dist.optim import Optimizers
from dlrm_dist.planning.cluster import load_cluster
from dlrm_dist.planning.planner import Request, make_plan
from dlrm_dist.planning.subject import make_subject
from dlrm_dist.planning.torchrec_plan import to_torchrec
from dlrm_dist.runtime import Session, session
from dlrm_dist.sections import CheckpointSection, RuntimeSection
from dlrm_dist.shard import ShardedTask, shard
from dlrm_dist.verify.ranks import run_ranks

RANKS, TABLES, DIM, BATCH = 2, 8, 64, 2048
REPEATS = 3


def main() -> int:
    if len(sys.argv) == 4 and sys.argv[1] == "rank":
        rank(float(sys.argv[2]), Path(sys.argv[3]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", default="0.1,1,4")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder when not given")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = []
    for size in map(float, options.gigabytes.split(",")):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            run_ranks(Path(__file__), RANKS, "rank", str(size), folder, timeout=1200)
            found.append(json.loads(Path(folder, "out.json").read_text()))
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    names = list(found[0])
    print("| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    for each in found:
        print("| " + " | ".join(f"{value:.3g}" for value in each.values()) + " |")
    return 0


def rank(gigabytes: float, folder: Path) -> None:
    """One rank: measure, and on rank 0 write the figures."""
    with session(RuntimeSection(device="cpu", timeout_s=300, threads=1)) as here:
        sharded, config, plan, shape = build(gigabytes, here)
        batches = [_batch(shape, here, number) for number in range(20)]
        pipeline = TrainPipelineSparseDist(sharded.model, sharded.optimizer, here.device)
        figures: dict[str, list[float]] = {}
        number = 0

        def step(count: int) -> float:
            started = time.perf_counter()
            stream = islice(cycle(batches), count + 2)
            for _ in range(count):
                pipeline.progress(stream)
            return time.perf_counter() - started

        step(20)
        twenty = step(20)
        steps = here.from_main(lambda: int(20 * 12 / twenty))  # some 12 s, and as many on every rank
        for wait in (True, False) * REPEATS:
            number += 1
            section = CheckpointSection.model_validate({"async": not wait, "keep": 1})
            keeper = Checkpoints(folder / "checkpoints", here, section, Origin(config, plan, {}, {"ranks": RANKS}))
            plain = 0.0 if wait else step(steps)
            started = time.perf_counter()
            keeper.save(sharded, Position(number, 0, 0), Progress(), {}, wait=wait)
            blocked = time.perf_counter() - started
            if wait:
                figures.setdefault("save_s", []).append(blocked)
                continue
            beside = step(steps)
            left = time.perf_counter()
            keeper.wait()
            figures.setdefault("blocked_s", []).append(blocked)
            figures.setdefault("written_s", []).append(blocked + beside + time.perf_counter() - left)
            figures.setdefault("extra_s", []).append(blocked + beside - plain)
        path = folders.complete_ones(folder / "checkpoints")[-1]
        for _ in range(REPEATS):
            started = time.perf_counter()
            state.load(sharded, path, number)
            figures.setdefault("load_s", []).append(time.perf_counter() - started)
        started = time.perf_counter()
        folders.damage_of(path, here.global_rank, RANKS)
        checked = time.perf_counter() - started
        medians = {name: sorted(values)[len(values) // 2] for name, values in figures.items()}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        size = sum(each.stat().st_size for each in path.iterdir()) / 1e9
        result = {"tables_GB": gigabytes, "on_disk_GB": size, **medians, "checksums_s": checked}
        result |= {"share_at_one_a_minute": medians["extra_s"] / 60, "peak_GiB_a_rank": peak}
        if here.is_main:
            (folder / "out.json").write_text(json.dumps(result))


def build(gigabytes: float, here: Session) -> tuple[ShardedTask, Config, Any, ModelShape]:
    """The sharded model, with what a checkpoint records of it."""
    rows = int(gigabytes * 1e9 / TABLES / DIM / 4)
    model = {"embedding_dim": DIM, "bottom_mlp": (256, DIM), "top_mlp": (256, 1)}
    config = Config.model_validate({"model": model, "train": {"batch_size": BATCH}})
    shape = ModelShape(13, tuple(Feature(f"C{number}", rows) for number in range(TABLES)))
    subject = make_subject(config.model, config.optimizer, shape)
    plan = make_plan(subject, load_cluster(f"cpu:1x{RANKS}"), Request(BATCH, ("row_wise",), (), None, "fp32"))
    sharded = shard(
        ClickTask(build_model(config.model, shape.num_dense, shape.named_rows, 0, here.device)),
        to_torchrec(plan),
        here.device,
        Optimizers(config.optimizer, 0.01),
        seed=0,
    )
    return sharded, config, plan, shape


def _batch(shape: ModelShape, here: Session, number: int) -> ClickBatch:
    generator = torch.Generator().manual_seed(1000 * here.global_rank + number)
    rows, features = BATCH // RANKS, shape.features
    return ClickBatch(
        dense=torch.rand(rows, shape.num_dense, generator=generator),
        sparse=KeyedJaggedTensor.from_lengths_sync(
            keys=[feature.name for feature in features],
            values=torch.randint(features[0].rows, (len(features) * rows,), generator=generator),
            lengths=torch.ones(len(features) * rows, dtype=torch.int32),
        ),
        labels=(torch.rand(rows, generator=generator) < 0.3).float(),
        weights=torch.ones(rows),
        loss_scale=torch.tensor(1 / rows),
    )


if __name__ == "__main__":
    sys.exit(main())

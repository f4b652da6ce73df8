"""One rank of the test of managed collisions: trains a model on raw ids, and the same one on ids of vocabularies."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from dlrm_dist.data.loader import SplitReader
from dlrm_dist.data.schema import read_info
from dlrm_dist.epochs import Epochs
from dlrm_dist.evaluate import evaluate
from dlrm_dist.models.build import build_model
from dlrm_dist.models.managed import ManagedIds
from dlrm_dist.models.shape import dataset_shape
from dlrm_dist.models.task import ClickTask
from dlrm_dist.optim import Optimizers
from dlrm_dist.pipeline import pipeline_of
from dlrm_dist.planning.cluster import load_cluster
from dlrm_dist.planning.planner import Request, make_plan
from dlrm_dist.planning.subject import make_subject
from dlrm_dist.planning.torchrec_plan import to_torchrec
from dlrm_dist.runtime import Session, session
from dlrm_dist.sections import MetricsSection, ModelSection, OptimizerSection, RuntimeSection, TrainSection
from dlrm_dist.shard import ShardedTask, shard
from dlrm_dist.verify.gather import whole

START = 0.1
"""Of all weights of tables, so that it does not matter in which row an id lies."""
MODEL = {"embedding_dim": 8, "bottom_mlp": (16, 8), "top_mlp": (16, 1)}
MANAGED = ("C3", "C10", "C8")
STEPS = 12


def sharded_task(folder: Path, section: ModelSection, optimizer: OptimizerSection, here: Session) -> ShardedTask:
    shape = dataset_shape(read_info(folder), section)
    features = [(feature.name, feature.rows) for feature in shape.features]
    task = ClickTask(build_model(section, shape.num_dense, features, 0, here.device))
    for module in task.modules():
        if isinstance(module, EmbeddingBagCollection):
            for config in module.embedding_bag_configs():
                config.init_fn = partial(nn.init.uniform_, a=START, b=START)
    subject = make_subject(section, optimizer, shape)
    plan = make_plan(subject, load_cluster(f"cpu:1x{here.world_size}"), Request(100, ("table_wise", "row_wise")))
    return shard(task, to_torchrec(plan), here.device, Optimizers(optimizer, 0.1), seed=0)


def trained(folder: Path, section: ModelSection, optimizer: OptimizerSection, here: Session) -> dict[str, Any]:
    """Losses of the rank's steps, whole weights, and this rank's map of ids before and after an evaluation."""
    sharded = sharded_task(folder, section, optimizer, here)
    info = read_info(folder)
    reader = SplitReader(folder, info, "train", here.global_rank, here.world_size)
    batches = Epochs.of(TrainSection(batch_size=100, epochs=1), reader, drop_last=False).batches(reader)
    pipeline = pipeline_of(sharded, here.device)
    losses = [pipeline.progress(batches)[0].item() for _ in range(STEPS)]
    final, maps = whole(sharded.model.state_dict()), maps_of(sharded)
    valid = SplitReader(folder, info, "valid", here.global_rank, here.world_size)
    evaluate(pipeline.detach(), valid, 100, here, MetricsSection(), folder)
    return {"losses": losses, "final": final, "maps": maps, "scored": maps_of(sharded)}


def maps_of(sharded: ShardedTask) -> dict[str, dict[str, torch.Tensor]]:
    """All that each table's map of ids has on this rank, a copy."""
    modules = sharded.model.named_modules()
    maps = {name.rpartition(".")[2]: each for name, each in modules if isinstance(each, ManagedIds)}
    return {
        table: {name: value.clone() for name, value in [*each.named_buffers(), *each.notes().items()]}
        for table, each in maps.items()
    }


def begun_anew(folder: Path, section: ModelSection, optimizer: OptimizerSection, here: Session) -> dict[str, Any]:
    """What rows 0 and 2 of a rank's part are, and all others, once they have been trained and then got other ids."""
    sharded = sharded_task(folder, section, optimizer, here)
    collection = next(each for each in sharded.model.modules() if hasattr(each, "_evict"))
    weight = collection._embedding_module.embedding_bags.get_parameter("t_C3.weight")
    state = [each for key, each in _moments(sharded) if "t_C3" in key]
    with torch.no_grad():
        for each in (weight, *state):
            each.fill_(7.0)
    collection._evict({"t_C3": torch.tensor([0, 2]), "t_C10": None})
    return {"weight": weight.detach().clone(), "state": [each.clone() for each in state]}


def _moments(sharded: ShardedTask) -> list[tuple[str, torch.Tensor]]:
    states = sharded.model.fused_optimizer.state_dict()["state"]
    return [
        (key, part.tensor)
        for values in states.values()
        for key, value in values.items()
        if hasattr(value, "local_shards")
        for part in value.local_shards()
    ]


def main(raw: str, vocabulary: str, out: str) -> None:
    roomy = ModelSection(**MODEL, managed_collisions=MANAGED, managed_rows=400, eviction_interval=1)
    tight = roomy.model_copy(update={"managed_rows": 16, "eviction_interval": 3})
    with session(RuntimeSection(device="cpu", timeout_s=60)) as here:
        results: dict[str, Any] = {}
        for kind in ("sgd", "adagrad", "rowwise_adagrad"):
            optimizer = OptimizerSection(sparse=kind, dense="sgd", eps=1e-8)
            results[f"anew-{kind}"] = begun_anew(Path(raw), roomy, optimizer, here)
        for name, folder, section in (
            ("managed", raw, roomy),
            ("vocabulary", vocabulary, ModelSection(**MODEL)),
            ("tight", raw, tight),
        ):
            results[name] = trained(Path(folder), section, optimizer, here)
        torch.save(results, f"{out}{here.global_rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""TorchRec's training pipeline of a sharded model."""

import torch
from torchrec.distributed.train_pipeline import PrefetchTrainPipelineSparseDist, TrainPipelineSparseDist

from dlrm_dist.shard import ShardedTask


def pipeline_of(sharded: ShardedTask, device: torch.device) -> TrainPipelineSparseDist:
    """The pipeline that reads, copies and exchanges the ids of coming batches while one is trained on.

    Tables that lie in host memory behind a cache on the GPU are also fetched ahead. The numbers are those of one step
    after another.
    """
    kind = PrefetchTrainPipelineSparseDist if sharded.has_caches else TrainPipelineSparseDist
    return kind(sharded.model, sharded.optimizer, device)

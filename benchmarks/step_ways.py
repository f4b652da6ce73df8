"""One way to train, for `step.py`, which starts it: `step_ways.py parquet|memory|plain OUT.json --section.key value …`.

`parquet` and `memory` are the project's own trainer, whole; they differ in nothing but where the batches lie. `plain`
is the same model on the same batches with PyTorch alone.
"""

import json
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from unittest.mock import patch

import torch
from harness import peak_mib
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedTensor

from dlrm_dist import config as configs
from dlrm_dist import place, runtime, train
from dlrm_dist.checkpoint.keeper import Checkpoints
from dlrm_dist.config import Config
from dlrm_dist.data.batch import ClickBatch
from dlrm_dist.data.loader import SplitReader
from dlrm_dist.data.order import EpochOrder
from dlrm_dist.data.schema import read_info
from dlrm_dist.epochs import Epochs
from dlrm_dist.models.build import build_model
from dlrm_dist.models.dlrm import DLRM

_READ = SplitReader.batches
_AHEAD = 2
"""Batches that the pipeline holds before its first step."""
_PLAIN_OPTIMIZERS = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "rowwise_adagrad": torch.optim.Adagrad}
"""PyTorch has no row-wise Adagrad."""


def main(way: str, out: str, *words: str) -> None:
    config = configs.load(words)
    found = plain(config) if way == "plain" else projects(config, in_memory=way == "memory")
    if place.global_rank() == 0:
        Path(out).write_text(json.dumps({**found, "peak_MiB": peak_mib()}))


def projects(config: Config, in_memory: bool) -> dict[str, float]:
    """The project's trainer; the figures are those of its own reports, but for the first, which holds the warm-up."""

    def batches(self: SplitReader, order: EpochOrder, first_step: int = 0) -> Iterator[ClickBatch]:
        stream = _READ(self, order, first_step)
        if self.split != "train":
            return stream
        if in_memory:  # made while the trainer waits for its first batch
            stream = iter([*islice(stream, config.train.max_steps)])
        return noting(stream, cpu)

    cpu: list[float] = []
    # What is kept of a run has a benchmark of its own.
    with patch.object(Checkpoints, "save"), patch.object(SplitReader, "batches", batches):
        train.main(config)
    if place.global_rank():
        return {}
    lines = (config.run.folder / config.run.name / "metrics.jsonl").read_text().splitlines()
    first, *reports = [line for line in map(json.loads, lines) if line["split"] == "train"]
    seconds = waited = 0.0
    before = first
    for report in reports:
        steps, before = report["step"] - before["step"], report
        seconds += report["step_ms"] * steps / 1e3
        waited += report["split_ms"]["input"] * steps / 1e3
    rows = before["samples"] - first["samples"]
    steady = cpu[config.train.log_every + _AHEAD :]
    share = (len(steady) - 1) * config.train.batch_size / place.world_size()
    return {
        "samples_per_s": rows / seconds,
        "samples_per_cpu_s": share / (steady[-1] - steady[0]),
        "input_share": waited / seconds,
    }


def noting(batches: Iterator[ClickBatch], cpu: list[float]) -> Iterator[ClickBatch]:
    """The batches; CPU-seconds of all of the process's threads so far are noted as each is handed over."""
    for batch in batches:
        cpu.append(time.process_time())
        yield batch


class PlainDLRM(nn.Module):
    """The project's dense layers and interaction around a plain `nn.EmbeddingBag` for each table."""

    def __init__(self, model: DLRM) -> None:
        super().__init__()
        self.bottom_mlp, self.interaction, self.top_mlp = model.bottom_mlp, model.interaction, model.top_mlp
        self.names = [each.feature_names[0] for each in model.embeddings.embedding_bag_configs()]
        self.tables = nn.ModuleList(
            nn.EmbeddingBag.from_pretrained(
                torch.empty(each.num_embeddings, each.embedding_dim).uniform_(
                    each.get_weight_init_min(), each.get_weight_init_max()
                ),
                freeze=False,
                mode="sum",
                sparse=True,
                include_last_offset=True,
            )
            for each in model.embeddings.embedding_bag_configs()
        )

    def forward(self, dense: Tensor, bags: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Dense features, and ids and offsets of each table, to logits."""
        embedded = [table(ids, offsets) for table, (ids, offsets) in zip(self.tables, bags, strict=True)]
        sparse = KeyedTensor.from_tensor_list(self.names, embedded)
        return self.top_mlp(self.interaction(self.bottom_mlp(dense), sparse)).squeeze(1)


def plain(config: Config) -> dict[str, float]:
    """One process; its batches lie in memory, already divided by table."""
    device = runtime.choose_device(config.runtime.device, 0, 1)
    torch.set_num_threads(runtime.choose_threads(config.runtime.threads, 1))
    info = read_info(config.data.path)
    reader = SplitReader(config.data.path, info, "train", 0, 1, expand=config.data.expand_multi_hot)
    epochs = Epochs.of(config.train, reader, drop_last=False)
    batches = [_plain_batch(batch.to(device)) for batch in epochs.batches(reader)]
    features = [
        (each.name, rows) for each, rows in zip(info.categories, config.model.num_embeddings or (), strict=True)
    ]
    model = PlainDLRM(build_model(config.model, len(info.dense), features, 0, torch.device("cpu"))).to(device)
    optimizer = _PLAIN_OPTIMIZERS[config.optimizer.sparse](model.parameters(), lr=config.train.learning_rate)
    is_bf16 = config.train.precision == "bf16"
    total = torch.zeros((), dtype=torch.float64, device=device)
    started = cpu = 0.0
    for step, (dense, bags, labels) in enumerate(batches):
        if step == config.train.log_every:
            total.item()  # waits for the device
            started, cpu = time.perf_counter(), time.process_time()
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=is_bf16):
            logits = model(dense, bags)
        loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), labels)
        loss.backward()
        optimizer.step()
        total += loss.detach()
    total.item()
    rows = (len(batches) - config.train.log_every) * config.train.batch_size
    return {
        "samples_per_s": rows / (time.perf_counter() - started),
        "samples_per_cpu_s": rows / (time.process_time() - cpu),
    }


def _plain_batch(batch: ClickBatch) -> tuple[Tensor, list[tuple[Tensor, Tensor]], Tensor]:
    columns = batch.sparse.to_dict().values()
    return batch.dense, [(each.values().long(), each.offsets().long()) for each in columns], batch.labels


if __name__ == "__main__":
    main(*sys.argv[1:])

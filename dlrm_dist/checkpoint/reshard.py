"""A checkpoint rewritten for another plan: each rank's files hold what that rank will load.

Any checkpoint can be loaded under any plan; this spares the ranks of a large cluster from reading each other's files.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

from torch import Size, Tensor
from torch.distributed.checkpoint import DefaultSavePlanner, SavePlan
from torch.distributed.checkpoint.default_planner import create_default_global_save_plan
from torch.distributed.checkpoint.filesystem import _StoragePrefix
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult

from dlrm_dist import progress
from dlrm_dist.checkpoint import folder
from dlrm_dist.checkpoint.source import Sharded
from dlrm_dist.checkpoint.state import COLUMN_MOMENTS
from dlrm_dist.checkpoint.storage import Writer
from dlrm_dist.errors import UserError
from dlrm_dist.planning.plan_file import PlanFile, TableSharding

Block = tuple[int, tuple[int, ...], tuple[int, ...]]
"""A rank, where its block of a tensor begins, the block's size."""


def reshard(source: Sharded, plan: PlanFile, out: Path) -> None:
    """Write `source` anew as the ranks of `plan` would have; memory for one table.

    Raises:
        UserError: the plan is for another model, or a moment cannot be cut as it says; `out` exists, or cannot be
            written.
    """
    if out.exists():
        raise UserError(f"{out}: is there already; name a folder that does not exist")
    _refuse_managed(source, plan)
    blocks = {key: list(_blocks(source, key, plan)) for key in source.sizes}
    temporary = folder.temporary_name(out)
    shutil.rmtree(temporary, ignore_errors=True)
    facts = folder.read_facts(source.path)
    announced = {**facts.announced, "ranks": plan.world_size, "plan": plan.digest}
    facts = facts.model_copy(update={"announced": announced})
    writer = Writer(temporary, lambda: folder.write_complete(temporary, out, facts))
    try:
        temporary.mkdir(parents=True)
        if (source.path / folder.CONFIG).is_file():
            shutil.copyfile(source.path / folder.CONFIG, temporary / folder.CONFIG)
        plan.write(temporary / folder.PLAN)
        _write(source, blocks, writer)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"{out}: cannot be written: {error.strerror}; nothing was left behind") from None


def _refuse_managed(source: Sharded, plan: PlanFile) -> None:
    """Refuse another number of ranks where ids are bound to ranks."""
    ranks = folder.read_facts(source.path).announced["ranks"]
    managed = [table.name for table in plan.inputs.tables if table.managed]
    if managed and plan.world_size != ranks:
        raise UserError(
            f"{source.path}: {managed[0]} has managed collisions, whose ids are bound to {ranks} ranks; the plan is "
            f"for {plan.world_size}; make a plan for {ranks}"
        )


def _write(source: Sharded, blocks: dict[str, list[Block]], writer: Writer) -> None:
    plans: list[SavePlan] = []
    results: list[WriteResult] = []
    for number, (key, parts) in enumerate(progress.each(blocks.items(), "reshard", "tensors")):
        value = source.read(key)
        for rank in sorted({rank for rank, _, _ in parts}):
            items = [_item(key, value, offsets, sizes) for owner, offsets, sizes in parts if owner == rank]
            plan = SavePlan(items, storage_data=_StoragePrefix(f"__{rank}_{number}_"))
            results += writer.write_data(plan, _OneTensor(value)).wait()
            plans.append(plan)
    metadata = create_default_global_save_plan(plans, rewrite_index_hints=False)[1]
    metadata.planner_data = {key: (key,) for key in blocks}
    writer.finish(metadata, [results])


class _OneTensor(DefaultSavePlanner):
    """Gives the writer blocks of one tensor."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self._value = value

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        """The block that an item is about."""
        assert write_item.tensor_data is not None
        chunk = write_item.tensor_data.chunk
        where = tuple(slice(begin, begin + size) for begin, size in zip(chunk.offsets, chunk.sizes, strict=True))
        return self._value[where].clone()


def _item(key: str, value: Tensor, offsets: tuple[int, ...], sizes: tuple[int, ...]) -> WriteItem:
    chunk = ChunkStorageMetadata(offsets=Size(offsets), sizes=Size(sizes))
    return WriteItem(
        index=MetadataIndex(key, Size(offsets)),
        type=WriteItemType.SHARD,
        tensor_data=TensorWriteData(chunk, TensorProperties.create_from_tensor(value), value.size()),
    )


def _blocks(source: Sharded, key: str, plan: PlanFile) -> Iterator[Block]:
    """The blocks of a tensor: of a table and its moments as the plan says, of all else the whole, on rank 0."""
    size = source.sizes[key]
    _, found, name = key.partition(".embedding_bags.")
    if not found or not size:
        yield 0, (0,) * len(size), size
        return
    table = name.split(".")[0]
    sharding = _sharding(source, key, plan, table)
    if sharding.shards is None:
        yield 0, (0,) * len(size), size
        return
    for shard in sharding.shards:
        rank = int(shard.placement.removeprefix("rank:").partition("/")[0])
        if len(size) == 1 and shard.offsets[1]:
            raise UserError(f"{source.path}: {key} cannot be cut as the plan says: {COLUMN_MOMENTS}")
        yield rank, shard.offsets[: len(size)], shard.sizes[: len(size)]


def _sharding(source: Sharded, key: str, plan: PlanFile, table: str) -> TableSharding:
    rows = {each.name: each.rows for each in plan.inputs.tables}
    sharding = dict(plan.placed()).get(table)
    if sharding is None:
        raise UserError(f"the plan has no table {table}, which {source.path} has; make a plan for its config.toml")
    if source.sizes[key][0] != rows[table]:
        reason = f"the plan gives {table} {rows[table]} rows, {source.path} has {source.sizes[key][0]} for {key}"
        raise UserError(f"{reason}; make a plan for its config.toml, or: {COLUMN_MOMENTS}")
    return sharding

"""A model's tables as a plan knows them, from the config alone."""

from dlrm_dist.models.shape import ModelShape
from dlrm_dist.models.tables import tables_of
from dlrm_dist.planning.plan_file import Table
from dlrm_dist.sections import ModelSection, OptimizerSection

_METADATA = {"lfu": 1, "lru": 1, "distance_lfu": 2}
"""Numbers that TorchRec's eviction policies keep of each row."""


def model_tables(model: ModelSection, optimizer: OptimizerSection, shape: ModelShape) -> tuple[Table, ...]:
    """The model's tables, with what they cost and how often they are looked up in."""
    ids_per_sample = {feature.name: feature.ids_per_sample for feature in shape.features}
    id_map = 8.0 * (2 + _METADATA[model.eviction_policy])  # an id and its row, and what the policy keeps, in int64
    return tuple(
        Table(
            name=table.name,
            rows=table.rows,
            dim=table.dim,
            features=table.features,
            ids_per_sample=tuple(ids_per_sample[name] for name in table.features),
            data_type=model.table_precision,
            optimizer_bytes_per_row=_state_bytes(optimizer.sparse, table.dim),
            id_map_bytes_per_row=id_map if set(table.features) & set(model.managed_collisions) else 0.0,
        )
        for table in tables_of(model, shape.named_rows)
    )


def _state_bytes(optimizer: str, dim: int) -> int:
    """Of a row, in fp32."""
    return {"sgd": 0, "rowwise_adagrad": 4, "adagrad": 4 * dim, "adam": 8 * dim}[optimizer]

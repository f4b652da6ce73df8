"""A model's tables as a plan knows them, from the config alone."""

from dlrm_dist.config import ModelSection, OptimizerSection
from dlrm_dist.models.shape import ModelShape
from dlrm_dist.planning.plan_file import Table


def model_tables(model: ModelSection, optimizer: OptimizerSection, shape: ModelShape) -> tuple[Table, ...]:
    """One table `t_<feature>` a feature."""
    dim = model.embedding_dim
    state = {"sgd": 0, "rowwise_adagrad": 4, "adagrad": 4 * dim, "adam": 8 * dim}[optimizer.sparse]  # fp32
    return tuple(
        Table(
            name=f"t_{feature.name}",
            rows=feature.rows,
            dim=dim,
            features=(feature.name,),
            ids_per_sample=(feature.ids_per_sample,),
            data_type=model.table_precision,
            optimizer_bytes_per_row=state,
        )
        for feature in shape.features
    )

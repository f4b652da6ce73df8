"""A model from its config section and the dataset's columns."""

from collections.abc import Sequence
from typing import TypedDict

import torch
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType

from dlrm_dist.models.click_model import ClickModel
from dlrm_dist.models.dcn import DCN
from dlrm_dist.models.dlrm import DLRM
from dlrm_dist.models.initial import init_dense, table_rule
from dlrm_dist.models.interaction import CrossInteraction, DotInteraction, ProjectionInteraction
from dlrm_dist.models.managed import MixedTables
from dlrm_dist.models.paddlerec import PaddleRecDLRM
from dlrm_dist.models.tables import tables_of
from dlrm_dist.sections import ModelSection


class _Extras(TypedDict):
    batch_norm: bool
    dropout: float


def build_model(
    section: ModelSection, num_dense: int, features: Sequence[tuple[str, int]], seed: int, device: torch.device
) -> ClickModel:
    """The model with its tables on the meta device (no memory) and its layers on `device`, initialised.

    Args:
        section: the model's shape.
        num_dense: number of dense features.
        features: (name, rows of its table) of each categorical feature.
        seed: of the layers' initial weights, which do not depend on the device.
        device: where all but the tables lives; on `meta` nothing is allocated or initialised.
    """
    names = [name for name, _ in features]
    tables = table_configs(section, features)
    with torch.device("meta" if device.type == "meta" else "cpu"):
        model = _model(section, num_dense, names, tables)
        if section.managed_collisions:
            model.embeddings = MixedTables(
                tables,
                section.managed_collisions,
                section.eviction_policy,
                section.eviction_interval,
                torch.device("meta"),
            )
    if device.type != "meta":
        init_dense(model, section.name, torch.Generator().manual_seed(seed))
    for part in model.dense_parts():
        part.to(device)
    return model


def table_configs(section: ModelSection, features: Sequence[tuple[str, int]]) -> list[EmbeddingBagConfig]:
    """The model's tables for TorchRec, with the rule by which each is initialised."""
    return [
        EmbeddingBagConfig(
            name=table.name,
            embedding_dim=table.dim,
            num_embeddings=table.rows,
            feature_names=list(table.features),
            pooling=PoolingType.SUM,
            data_type=DataType(section.table_precision.upper()),
            init_fn=table_rule(section.name, table.rows),
        )
        for table in tables_of(section, features)
    ]


def _model(section: ModelSection, num_dense: int, names: list[str], tables: list[EmbeddingBagConfig]) -> ClickModel:
    meta = torch.device("meta")
    extras: _Extras = {"batch_norm": section.batch_norm, "dropout": section.dropout}
    if section.name == "dcn":
        layers, matrix = section.cross_layers, section.cross == "matrix"
        return DCN(num_dense, tables, names, layers, section.deep_mlp, meta, matrix, **extras)
    if section.name == "paddlerec":
        return PaddleRecDLRM(num_dense, tables, names, section.bottom_mlp, section.top_mlp, meta)
    interaction = _interaction(section, names)
    return DLRM(num_dense, tables, section.bottom_mlp, section.top_mlp, interaction, meta, **extras)


def _interaction(section: ModelSection, names: list[str]) -> DotInteraction | CrossInteraction | ProjectionInteraction:
    dim = section.embedding_dim
    if section.name == "dlrm_dcnv2":
        return CrossInteraction(names, dim, section.cross_layers, section.cross_rank)
    if section.name == "dlrm_projection":
        return ProjectionInteraction(names, dim, section.projection_branch1, section.projection_branch2)
    return DotInteraction(names, dim)

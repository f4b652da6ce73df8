"""A model from its config section and the dataset's columns."""

from collections.abc import Sequence

import torch

from dlrm_dist.config import ModelSection
from dlrm_dist.models.dlrm import DLRM, init_dense, table_configs
from dlrm_dist.models.interaction import CrossInteraction, DotInteraction


def build_model(
    section: ModelSection, num_dense: int, features: Sequence[tuple[str, int]], seed: int, device: torch.device
) -> DLRM:
    """The model with its tables on the meta device (no memory) and its MLPs on `device`, initialised.

    Args:
        section: the model's shape.
        num_dense: number of dense features.
        features: (name, rows of its table) of each categorical feature.
        seed: of the MLPs' initial weights, which do not depend on the device.
        device: where all but the tables lives; on `meta` nothing is allocated or initialised.
    """
    names = [name for name, _ in features]
    with torch.device("meta" if device.type == "meta" else "cpu"):
        interaction = (
            DotInteraction(names, section.embedding_dim)
            if section.name == "dlrm"
            else CrossInteraction(names, section.embedding_dim, section.cross_layers, section.cross_rank)
        )
        model = DLRM(
            num_dense,
            table_configs(features, section.embedding_dim, section.table_precision),
            section.bottom_mlp,
            section.top_mlp,
            interaction,
            tables_device=torch.device("meta"),
        )
    if device.type != "meta":
        init_dense(model, torch.Generator().manual_seed(seed))
    for part in (model.bottom_mlp, model.interaction, model.top_mlp):
        part.to(device)
    return model

"""A model from its config section and the dataset's columns."""

from collections.abc import Sequence

import torch

from dlrm_dist.config import ModelSection
from dlrm_dist.models.dlrm import DLRM, init_mlps, table_configs


def build_model(
    section: ModelSection, num_dense: int, features: Sequence[tuple[str, int]], seed: int, device: torch.device
) -> DLRM:
    """The model with its tables on the meta device (no memory) and its MLPs on `device`, initialised.

    Args:
        section: the model's shape.
        num_dense: number of dense features.
        features: (name, rows of its table) of each categorical feature.
        seed: of the MLPs' initial weights, which do not depend on the device.
        device: where the MLPs live.
    """
    model = DLRM(
        num_dense,
        table_configs(features, section.embedding_dim),
        section.bottom_mlp,
        section.top_mlp,
        tables_device=torch.device("meta"),
    )
    init_mlps(model, torch.Generator().manual_seed(seed))
    model.bottom_mlp.to(device)
    model.interaction.to(device)
    model.top_mlp.to(device)
    return model

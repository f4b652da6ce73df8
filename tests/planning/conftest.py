import pytest

from dlrm_dist.models.shape import model_shape
from dlrm_dist.planning.cluster import load_cluster
from dlrm_dist.planning.planner import Request
from dlrm_dist.sections import DataSection, ModelSection, OptimizerSection
from tests.planning.make import plan_for

ROWS = (2_000_000, 50_000, 3, 700)


@pytest.fixture(scope="session")
def model():
    return ModelSection(num_embeddings=ROWS, embedding_dim=32, bottom_mlp=(64, 32), top_mlp=(64, 1))


@pytest.fixture(scope="session")
def shape(model):
    return model_shape(DataSection(path="nowhere"), model)


@pytest.fixture(scope="session")
def plan(model):
    """A plan for two hosts of two GPUs, by table and by row."""
    return plan_for(model, load_cluster("h100:2x2"), Request(4096, ("table_wise", "row_wise")))


@pytest.fixture(scope="session")
def optimizer():
    return OptimizerSection()

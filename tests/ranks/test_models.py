"""Each model, sharded over two ranks, against the same without sharding: weights, moments, running statistics."""

from unittest.mock import Mock

import pytest

from dlrm_dist.models.shape import Feature, ModelShape
from dlrm_dist.sections import ModelSection
from dlrm_dist.verify import compare
from dlrm_dist.verify.cases import MIXED, Case, Layout
from dlrm_dist.verify.problem import STEPS

SHAPE = ModelShape(3, tuple(Feature(f"C{number}", 300) for number in range(1, 6)))
MLPS = {"embedding_dim": 8, "bottom_mlp": (16, 8), "top_mlp": (16, 1)}
MODELS = {
    "groups": ModelSection(**MLPS, shared_tables=("C1+C4", "C5+C2")),
    "all": ModelSection(**MLPS, shared_tables=("all",)),
    "dcnv2": ModelSection(name="dlrm_dcnv2", **MLPS, cross_layers=2, cross_rank=4, shared_tables=("C2+C3+C4",)),
    "projection": ModelSection(name="dlrm_projection", **MLPS, projection_branch1=(16,), projection_branch2=(8, 24)),
    "dcn": ModelSection(name="dcn", embedding_dims=(8, 16, 8, 16, 12), shared_tables=("C1+C3",), deep_mlp=(16, 8)),
    "normalised": ModelSection(**{**MLPS, "top_mlp": (16, 12, 1)}, batch_norm=True),
    "matrix": ModelSection(name="dcn", embedding_dim=8, cross="matrix", deep_mlp=(16, 8), batch_norm=True),
    "paddlerec": ModelSection(name="paddlerec", **{**MLPS, "top_mlp": (16, 2)}),
}
CASES = [
    *((model, MIXED, "rowwise_adagrad") for model in MODELS),
    *(("all", kind, "rowwise_adagrad") for kind in ("row_wise", "data_parallel")),
    *(("groups", kind, "adagrad") for kind in ("row_wise", "column_wise")),
    *((model, MIXED, "sgd") for model in ("dcn", "paddlerec")),
]


@pytest.fixture(scope="module")
def results():
    """All cases in one start of two ranks: 127 rows, so that the second has a filler."""
    layout, jobs, cases = Layout(1, 2), [], []
    for model, kind, optimizer in CASES:
        case = Case(layout, kind, optimizer, "fp32", "fp32")
        job = compare._job(case, MODELS[model], SHAPE)
        jobs.append(job.model_copy(update={"name": f"{model}-{case.name}"}))
        cases.append(case)
    found = compare._run(layout, jobs, Mock(n=0))
    return {key: (case, job, found[job.name]) for key, job, case in zip(CASES, jobs, cases, strict=True)}


@pytest.mark.parametrize("key", CASES, ids="-".join)
def test_sharded_training_equals_the_reference(key, results):
    result = compare._result(*results[key], slower=1.0)
    assert result.verdict == "equal" and result.moved > 0.05, result
    assert compare._result(*results[key], slower=0.97).is_failure


def test_running_statistics_are_among_what_is_compared(results):
    _, _, found = results["paddlerec", MIXED, "rowwise_adagrad"]
    names = {key.rpartition(".")[2] for key in found["final"]}
    assert {"running_mean", "running_var"} <= names
    assert found["final"]["model.top_mlp.2.num_batches_tracked"] == STEPS

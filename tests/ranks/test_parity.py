"""Sharded training equals unsharded training written without TorchRec."""

import json
from pathlib import Path

import pytest
import torch

from dlrm_dist.data.loader import SplitReader
from dlrm_dist.data.schema import read_info
from dlrm_dist.epochs import Epochs
from dlrm_dist.sections import TrainSection
from dlrm_dist.verify.ranks import run_ranks
from tests.ranks.reference import ReferenceDLRM, table_key, train

PROGRAM = Path(__file__).with_name("parity_program.py")
MODEL = {"embedding_dim": 8, "bottom_mlp": [16, 8], "top_mlp": [16, 1]}
EPS = 1e-8
TOLERANCE = 1e-5
FACTORS = [min(1.0, (step + 1) / 4) * (0.5 if step > 15 else 1.0) for step in range(20)]
"""Of the learning rates: they change while training."""
RATES = {"sgd": (10.0, 0.5), "adagrad": (0.02, 0.02), "rowwise_adagrad": (0.02, 0.02)}
"""Of the tables and of the MLPs: such that both move by more than 0.1 in 20 steps."""
DENSE = {"sgd": "sgd", "adagrad": "adagrad", "rowwise_adagrad": "adagrad"}
CASES = {
    f"{types[0] if len(types) == 1 else 'mixed'}-{kind}": {"types": types, "kind": kind}
    for types in (["table_wise"], ["row_wise"])
    for kind in ("sgd", "rowwise_adagrad")
} | {
    "mixed-adagrad": {"types": ["table_wise", "row_wise"], "kind": "adagrad"},
    "data_parallel-rowwise_adagrad": {"types": ["data_parallel"], "kind": "rowwise_adagrad"},
}


def settings(case, data):
    kind = case["kind"]
    return {
        "data": str(data),
        "factors": FACTORS,
        "types": case["types"],
        "model": MODEL,
        "train": {"batch_size": 100, "epochs": 1, "learning_rate": RATES[kind][1]},
        "optimizer": {"sparse": kind, "dense": DENSE[kind], "eps": EPS, "sparse_learning_rate": RATES[kind][0]},
    }


@pytest.fixture(scope="module", params=[2, 4], ids=["2ranks", "4ranks"])
def sharded_runs(request, small_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("parity")
    cases = {name: settings(case, small_dataset) for name, case in CASES.items()}
    (folder / "cases.json").write_text(json.dumps(cases))
    run_ranks(PROGRAM, request.param, str(folder / "cases.json"), str(folder / "out.pt"), timeout=200)
    return torch.load(folder / "out.pt", weights_only=True)


def reference_run(initial, data, kind, slower=1.0):
    info = read_info(data)
    reader = SplitReader(data, info, "train", 0, 1)
    epochs = Epochs.of(TrainSection(batch_size=100, epochs=1), reader, drop_last=False)
    assert epochs.total_steps == 20
    model = ReferenceDLRM(initial, [category.name for category in info.categories])
    sparse, dense = (kind, RATES[kind][0] * slower), (DENSE[kind], RATES[kind][1])
    return model, train(model, epochs.batches(reader), sparse, dense, EPS, FACTORS)


def largest_difference(run, model, moments):
    """Over every weight, and over the fused optimizer's second moments (SGD and data-parallel tables have none)."""
    final = {key: value.double() for key, value in run["final"].items()}
    differences = [(final[table_key(name)] - bag).abs().max() for name, bag in model.bags.items()]
    differences += [(final[key.replace("/", ".")] - value).abs().max() for key, value in model.mlps.items()]
    for key, value in run["state"].items():
        moment = moments[key.removeprefix("t_").removesuffix(".momentum1")]
        differences.append((value.reshape(moment.shape) - moment).abs().max())
    return torch.stack(differences).max().item()


@pytest.mark.parametrize("name", CASES)
def test_sharded_training_equals_the_reference(name, sharded_runs, small_dataset):
    run, kind = sharded_runs[name], CASES[name]["kind"]
    assert set(run["types"]) >= set(CASES[name]["types"])  # tables of fewer rows than ranks stay table-wise
    model, moments = reference_run(run["initial"], small_dataset, kind)
    moved = {key: (value - run["initial"][key]).abs().max().item() for key, value in run["final"].items()}
    tables_moved = max(value for key, value in moved.items() if "embedding_bags" in key)
    mlps_moved = max(value for key, value in moved.items() if "_mlp." in key)
    assert mlps_moved > 0.1 and tables_moved > 0.1
    assert bool(run["state"]) == (kind != "sgd" and run["types"] != ["data_parallel"])
    assert largest_difference(run, model, moments) <= TOLERANCE
    if run["types"] != ["data_parallel"]:  # no fused kernel then
        assert run["loops"] == [kind == "rowwise_adagrad"]


@pytest.mark.parametrize("name", ["row_wise-sgd", "table_wise-rowwise_adagrad"])
def test_a_wrong_reference_is_noticed(name, sharded_runs, small_dataset):
    run, kind = sharded_runs[name], CASES[name]["kind"]
    model, moments = reference_run(run["initial"], small_dataset, kind, slower=0.999)
    assert largest_difference(run, model, moments) > TOLERANCE


def test_initial_weights_do_not_depend_on_the_plan(sharded_runs):
    first, *others = (run["initial"] for run in sharded_runs.values())
    assert all(torch.equal(first[key], other[key]) for other in others for key in first)

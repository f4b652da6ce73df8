"""`dlrm-dist verify`, as a user runs it, and that it can fail."""

import json

import pytest
import torch

from dlrm_dist.models.shape import Feature, ModelShape
from dlrm_dist.planning.constraints import SHARDING_TYPES
from dlrm_dist.sections import ModelSection
from dlrm_dist.verify import compare as compare_module
from dlrm_dist.verify.cases import MIXED, PRECISIONS, Case, Layout, make_cases
from dlrm_dist.verify.compare import compare
from tests.helpers import assert_refused, run_command

MODEL = ("--data.path", "nowhere", "--model.num_embeddings", "300,90,200,150,120,80,60", "--model.embedding_dim", "8")
LAYERS = ("--model.bottom_mlp", "16,8", "--model.top_mlp", "16,1")
ROWS = (300, 90, 200, 150, 120, 80, 60)
SECTION = ModelSection(embedding_dim=8, bottom_mlp=(16, 8), top_mlp=(16, 1))
SHAPE = ModelShape(13, tuple(Feature(f"C{number}", rows) for number, rows in enumerate(ROWS)))
BY_COLUMN = {"column_wise", "table_column_wise", "grid_shard"}


def verify(folder, *words):
    return run_command("dlrm-dist", "verify", *MODEL, *LAYERS, *words, folder=folder, timeout=200)


@pytest.mark.parametrize("layout", ["2", "2x2"])
def test_all_seven_types_and_all_mixed_are_equal(tmp_path, layout):
    done = verify(tmp_path, "--ranks", layout, "--optimizer.sparse", "sgd", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(done.stdout)
    assert [result["case"]["sharding_type"] for result in results] == [*SHARDING_TYPES, MIXED]
    assert {result["verdict"] for result in results} == {"equal"}
    assert all(result["weights"] <= 1e-5 < 0.1 < result["moved"] for result in results)


def test_what_cannot_be_equal_is_named(tmp_path):
    done = verify(tmp_path, "--ranks", "2", "--sharding.types", "table_wise", "--sharding.comm_precision", "int8")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split(None, 5) for line in done.stdout.splitlines()[1:]]
    assert len(lines) == 16
    exact = {line[1]: line[5] for line in lines if line[4] == "fp32"}
    for kind in SHARDING_TYPES:
        assert ("cannot be equal: row-wise Adagrad" in exact[kind]) == (kind in BY_COLUMN)
        assert exact[kind].endswith("equal") == (kind not in BY_COLUMN)
    coarse = {line[1]: line[5] for line in lines if line[4] == "int8"}
    assert "refused: int8 does not work with a reduce-scatter" in coarse["row_wise"]
    assert coarse["table_wise"].endswith("equal but for rounding")
    assert float(coarse["table_wise"].split()[2]) > 1e-4  # the exchange is coarse indeed


@pytest.mark.parametrize(("layout", "is_coarse"), [(Layout(2, 2), True), (Layout(1, 2), False)])
def test_a_coarse_exchange_between_hosts_only(layout, is_coarse):
    kinds = ("table_wise", "table_row_wise", "data_parallel")
    results = list(compare([Case(layout, kind, "sgd", "fp32", "fp16_between_hosts") for kind in kinds], SECTION, SHAPE))
    assert {result.verdict for result in results} == {"equal but for rounding" if is_coarse else "equal"}
    assert all((result.weights > 1e-5) == is_coarse for result in results)


def test_a_wrong_learning_rate_is_noticed():
    cases = [Case(Layout(1, 2), kind, "sgd", "fp32", "fp32") for kind in ("table_wise", "row_wise")]
    results = list(compare(cases, SECTION, SHAPE, slower=0.99))
    assert [result.verdict for result in results] == ["DIFFERS", "DIFFERS"]
    assert all(result.is_failure for result in results)


def test_a_wrong_learning_rate_is_noticed_in_a_coarse_exchange_too():
    cases = [Case(Layout(1, 4), "column_wise", kind, "fp32", "int8") for kind in ("sgd", "adagrad")]
    assert [result.verdict for result in compare(cases, SECTION, SHAPE)] == ["equal but for rounding"] * 2
    assert all(result.is_failure for result in compare(cases, SECTION, SHAPE, slower=0.9))


def test_how_far_rows_are_off():
    initial, theirs = torch.zeros(5, 2), torch.tensor([[1.0, 0], [0, 2], [4, 0], [8, 0], [0, 0]])
    assert compare_module._rows_off(theirs, theirs.double(), initial) == 0
    mine = theirs * torch.tensor([[1.0], [1.1], [1.1], [1.1], [1.0]])
    assert compare_module._rows_off(mine, theirs.double(), initial) == pytest.approx(0.1)
    mine[1:4] = float("nan")
    assert compare_module._rows_off(mine, theirs.double(), initial) == float("inf")
    assert compare_module._rows_off(initial, initial.double(), initial) == 0
    assert compare_module._rows_off(theirs, initial.double(), initial) == float("inf"), "it moved, and should not"


def test_cases():
    cases = make_cases([Layout(1, 2), Layout(2, 2)], ("sgd", "adagrad"), ("fp32",), PRECISIONS)
    assert len(cases) == 2 * 2 * 4 * 8 == len(set(cases))
    mixed = Case(Layout(1, 2), MIXED, "rowwise_adagrad", "fp32", "int8")
    assert set(mixed.types(7)) == {"table_wise"}  # what can be equal and works in int8
    assert set(Case(Layout(1, 2), MIXED, "sgd", "fp32", "fp32").types(7)) == set(SHARDING_TYPES)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--ranks", "two"), "--ranks 'two': write a number of ranks"),
        (("--ranks", "0"), "--ranks '0'"),
        (("--ranks", "2x"), "--ranks '2x'"),
        (("--optimizer.sparse", "adam"), "adam, which has no fused kernel on CPU"),
        (("--optimizer.sprase", "adam"), "did you mean optimizer.sparse?"),
    ],
)
def test_mistakes_are_one_line(tmp_path, words, said):
    assert_refused(verify(tmp_path, *words), said)

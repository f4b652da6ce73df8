import pytest

from dlrm_dist.planning import check
from dlrm_dist.planning.cluster import load_cluster
from dlrm_dist.planning.constraints import Rule
from dlrm_dist.planning.planner import Request, inputs_of
from dlrm_dist.sections import OptimizerSection
from tests.planning.make import ALL_TYPES, placed, plan_for, subject_of, with_table

REQUEST = Request(4096, ("table_wise", "row_wise"))


@pytest.fixture(scope="module")
def cut(model):
    """A plan whose first table is cut by rows over four ranks, the second by columns over two."""
    kinds = {"t_C1": "row_wise", "t_C2": "column_wise", "t_C3": "data_parallel", "t_C4": "table_wise"}
    rules = tuple(Rule(pattern=name, sharding_types=(kind,)) for name, kind in kinds.items())
    return plan_for(model, load_cluster("h100:2x2"), Request(4096, ALL_TYPES, rules))


def moved(plan, table, number, **changes):
    """One shard of a table changed."""
    shards = list(placed(plan, table).shards)
    shards[number] = shards[number].model_copy(update=changes)
    return with_table(plan, table, shards=tuple(shards))


@pytest.mark.parametrize("kind", ALL_TYPES)
def test_the_planners_own_plans_are_sound(model, kind):
    rules = (Rule(pattern="t_C3", sharding_types=("data_parallel",)), Rule(pattern="*", sharding_types=(kind,)))
    assert check.problems(plan_for(model, load_cluster("h100:2x2"), Request(4096, ALL_TYPES, rules))) == []


def test_a_missing_table(cut):
    modules = {path: {n: s for n, s in module.items() if n != "t_C2"} for path, module in cut.modules.items()}
    assert check.problems(cut.model_copy(update={"modules": modules})) == ["table t_C2 has no place in the plan"]


def test_a_table_of_no_model(cut):
    modules = {path: {**module, "t_X": module["t_C4"]} for path, module in cut.modules.items()}
    assert check.problems(cut.model_copy(update={"modules": modules})) == [
        "table t_X is placed, but is no table of the model"
    ]


def test_overlapping_shards_by_row(cut):
    (problem,) = check.problems(moved(cut, "t_C1", 1, offsets=(499_999, 0)))
    assert problem == "table t_C1: shards at (0, 0) and (499999, 0) overlap"


def test_overlapping_shards_by_column(cut):
    (problem,) = check.problems(moved(cut, "t_C2", 1, offsets=(0, 15)))
    assert problem == "table t_C2: shards at (0, 0) and (0, 15) overlap"


def test_a_shard_beyond_the_table(cut):
    (problem,) = check.problems(moved(cut, "t_C1", 3, offsets=(1_500_001, 0)))
    assert problem == "table t_C1: shard of 500000 x 32 at (1500001, 0) is beyond the table of 2000000 x 32"


def test_a_gap_between_shards(cut):
    (problem,) = check.problems(moved(cut, "t_C1", 2, sizes=(499_999, 32)))
    assert problem == "table t_C1: its shards leave a part of it without a place"


def test_fewer_shards_than_ranks(cut):
    (problem,) = check.problems(with_table(cut, "t_C1", shards=placed(cut, "t_C1").shards[:3]))
    assert problem == "table t_C1: 3 shards for 4 ranks"


def test_a_rank_that_does_not_exist(cut):
    (problem,) = check.problems(with_table(cut, "t_C4", ranks=(4,)))
    assert problem == "table t_C4: rank 4 does not exist among 4"


def test_a_shard_on_another_device_than_its_rank(cut):
    (problem,) = check.problems(moved(cut, "t_C1", 3, placement="rank:3/cuda:0"))
    assert "is placed on rank:3/cuda:0, not on rank:3/cuda:1" in problem


def test_an_unknown_type(cut):
    assert check.problems(with_table(cut, "t_C4", sharding_type="by_moon")) == [
        "table t_C4: no sharding type 'by_moon'"
    ]


def test_too_much_memory(cut):
    use = check.hbm_use(cut)
    gib = (max(use) - 100) / (1 - 0.15) / 2**30
    small = cut.inputs.cluster.with_constant("hbm_gib", gib, "a test")
    inputs = cut.inputs.model_copy(update={"cluster": small})
    plan = cut.model_copy(update={"inputs": inputs, "digest": inputs.digest()})
    full = [rank for rank, have in enumerate(use) if have > max(use) - 100]
    assert 0 < len(full) < 4
    needs = f"needs {max(use) / 2**30:.2f} GiB of HBM, 0.00 more than it has"
    assert check.problems(plan) == [f"rank {rank} {needs}" for rank in full]


def test_too_much_memory_is_seen_without_the_estimates(cut):
    """Weights and state alone: 2M x 32 in fp32 and a moment a row, a quarter on each rank."""
    plan = cut.model_copy(update={"estimates": {}})
    expected = 500_000 * (32 * 4 + 4) + 3 * (32 * 4 + 4)
    assert min(check.hbm_use(plan)) >= expected
    assert max(check.hbm_use(plan)) <= expected + 50_000 * 33 * 4 + 700 * 33 * 4


def test_inputs_changed_by_hand(cut):
    inputs = cut.inputs.model_copy(update={"batch_size": 8})
    (problem,) = check.problems(cut.model_copy(update={"inputs": inputs}))
    assert "digest differs" in problem


def test_what_is_up_to_date(plan, model):
    assert check.problems(plan, inputs_of(subject_of(model), load_cluster("h100:2x2"), REQUEST)) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"request": Request(8192, REQUEST.sharding_types)}, "stale: batch size 4096 in the plan, 8192 in the config"),
        ({"request": Request(4096, ("table_wise",))}, "stale: sharding types"),
        ({"request": Request(4096, REQUEST.sharding_types, comm_precision="fp16")}, "precision of the exchange"),
        (
            {"request": Request(4096, (), (Rule(pattern="*", sharding_types=("row_wise",)),), "mine.toml")},
            "constraints differ from mine.toml",
        ),
        ({"cluster": "h100:1x4"}, "world size: the plan is for 2x2 ranks, not for 1x4"),
        ({"cluster": "h200:2x2"}, "cluster h100 is described otherwise now: hbm_gib, hbm_gb_s"),
        ({"optimizer": OptimizerSection(sparse="sgd")}, "optimizer is rowwise_adagrad in the plan, sgd in the config"),
        ({"model": {"multi_hot_sizes": (2.0, 1.0, 1.0, 1.0)}}, "multi_hot_sizes"),
        ({"model": {"top_mlp": (8, 1)}}, "layers around the tables differ"),
        ({"model": {"num_embeddings": (2_000_001, 50_000, 3, 700)}}, "2000000 x 32 fp32 in the plan, 2000001 x 32"),
        ({"model": {"num_embeddings": (2_000_000, 50_000, 3)}}, "table t_C4 of the plan is not in the model"),
        ({"model": {"num_embeddings": (2_000_000, 50_000, 3, 700, 5)}}, "table t_C5 of the model is not in the plan"),
    ],
)  # fmt: skip
def test_stale_inputs(plan, model, change, said):
    other = model.model_copy(update=change.get("model", {}))
    subject = subject_of(other, change.get("optimizer"))
    cluster = load_cluster(change.get("cluster", "h100:2x2"))
    found = check.problems(plan, inputs_of(subject, cluster, change.get("request", REQUEST)))
    assert any(said in line for line in found), found

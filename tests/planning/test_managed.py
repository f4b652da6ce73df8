"""Plans of tables with managed collisions."""

import pytest

from dlrm_dist.errors import UserError
from dlrm_dist.planning import check, plan_file
from dlrm_dist.planning.cluster import load_cluster
from dlrm_dist.planning.constraints import Rule
from dlrm_dist.planning.planner import Request
from dlrm_dist.planning.torchrec_plan import to_torchrec
from dlrm_dist.sections import ModelSection, OptimizerSection
from tests.planning.make import ALL_TYPES, placed, plan_for, subject_of

PLAIN = ModelSection(num_embeddings=(9000, 8000, 70, 600), embedding_dim=16, bottom_mlp=(16,))
MODEL = PLAIN.model_copy(update={"managed_collisions": ("C2", "C4")})
REQUEST = Request(4096, ("table_wise", "row_wise", "column_wise"))


def refusal(request, cluster="h100:1x4"):
    with pytest.raises(UserError) as caught:
        plan_for(MODEL, load_cluster(cluster), request)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("cluster", ["cpu:1x1", "cpu:1x3", "h100:2x4"])
@pytest.mark.parametrize("types", [("row_wise", "table_wise"), ALL_TYPES])
def test_they_are_row_wise_and_the_others_free(cluster, types):
    plan = plan_for(MODEL, load_cluster(cluster), Request(4096, types))
    for table in ("t_C2", "t_C4"):
        found = placed(plan, table)
        assert (found.sharding_type, found.compute_kernel) == ("row_wise", "fused")
        assert len(found.shards) == plan.world_size
    assert {path: sorted(tables) for path, tables in plan.modules.items()} == {
        "model.embeddings.plain": ["t_C1", "t_C3"],
        "model.embeddings.managed": ["t_C2", "t_C4"],
    }
    assert check.problems(plan) == []


def test_the_map_of_ids_takes_memory(tmp_path):
    """An id and a row, and one number more of the policy or two, 8 bytes each."""
    plans = [
        plan_for(model, load_cluster("h100:1x1"), REQUEST)
        for model in (PLAIN, MODEL, MODEL.model_copy(update={"eviction_policy": "distance_lfu"}))
    ]
    sizes = [sum(table.rows * table.bytes_per_row for table in plan.inputs.tables) for plan in plans]
    assert [size - sizes[0] for size in sizes[1:]] == [24 * 8600, 32 * 8600]
    plans[1].write(tmp_path / "p.json")
    again = plan_file.read(tmp_path / "p.json")
    assert again == plans[1] and check.problems(again) == []
    assert to_torchrec(again) == to_torchrec(plans[1])
    plans[0].write(tmp_path / "plain.json")
    assert "id_map" not in (tmp_path / "plain.json").read_text()  # so plans that were made before stay as they are


def test_a_plan_without_managed_collisions_is_not_the_models():
    plan = plan_for(PLAIN, load_cluster("cpu:1x2"), REQUEST)
    found = check.model_problems(plan, subject_of(MODEL).tables, OptimizerSection().sparse)
    assert found == [
        f"table t_{name} has no managed collisions in the plan, managed collisions in the model"
        for name in ("C2", "C4")
    ]


def test_what_they_cannot_be_is_refused_by_name():
    told = refusal(Request(4096, ("table_wise", "column_wise")))
    assert told.startswith("sharding.types: table t_C2 has managed collisions") and "allow row_wise" in told
    rules = (Rule(pattern="t_C4", sharding_types=("table_wise",)), Rule(pattern="*", sharding_types=("row_wise",)))
    told = refusal(Request(4096, (), rules))
    assert told.startswith("constraints (pattern 't_C4'): table t_C4") and "allow row_wise" in told
    rules = (Rule(pattern="*", sharding_types=("row_wise",), compute_kernels=("fused", "fused_uvm_caching")),)
    assert "do not go with the managed collisions of table t_C2; allow fused only" in refusal(Request(4096, (), rules))
    told = refusal(REQUEST, "cpu:8x64")
    assert told.startswith("table t_C2 has managed collisions and 8000 rows: cut for 512 ranks, the last has less")

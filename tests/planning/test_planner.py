import json
import re
import subprocess
import sys

import pytest

from dlrm_dist.errors import NothingFitsError, UserError
from dlrm_dist.models.shape import model_shape
from dlrm_dist.planning import check, fit
from dlrm_dist.planning.cluster import load_cluster
from dlrm_dist.planning.constraints import Rule
from dlrm_dist.planning.make import plan_model
from dlrm_dist.planning.planner import Request, every_part_has_rows
from dlrm_dist.sections import DataSection, ModelSection, OptimizerSection
from tests.helpers import ROOT
from tests.planning.make import ALL_TYPES, placed, plan_for, subject_of

REQUEST = Request(4096, ("table_wise", "row_wise", "column_wise"))


def test_the_same_inputs_give_the_same_plan_whatever_the_hash_seed():
    """TorchRec walks through a set of strings."""
    program = (
        "from dlrm_dist.config import ModelSection\n"
        "from dlrm_dist.planning.cluster import load_cluster\n"
        "from dlrm_dist.planning.planner import Request\n"
        "from tests.planning.make import ALL_TYPES, plan_for\n"
        "model = ModelSection(num_embeddings=(90000, 80000, 70000, 600), embedding_dim=32, bottom_mlp=(32,))\n"
        "print(plan_for(model, load_cluster('h100:2x4'), Request(4096, ALL_TYPES)).model_dump_json())\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=100,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outputs) == 1


def test_the_optimizers_state_is_counted(model):
    """Of SGD none, of row-wise Adagrad a number a row, of Adagrad one a weight."""
    use = {
        name: sum(check.hbm_use(plan_for(model, load_cluster("h100:1x1"), REQUEST, OptimizerSection(sparse=name))))
        for name in ("sgd", "rowwise_adagrad", "adagrad")
    }
    rows = 2_050_703
    assert use["rowwise_adagrad"] - use["sgd"] == pytest.approx(4 * rows, rel=1e-3)
    assert use["adagrad"] - use["sgd"] == pytest.approx(4 * 32 * rows, rel=1e-3)


def test_nothing_is_allocated():
    """400 GB of tables, and a dense part on the meta device."""
    subject = subject_of(ModelSection(num_embeddings=(10**9,) * 2, embedding_dim=64, bottom_mlp=(64,)))
    assert all(parameter.device.type == "meta" for parameter in subject.task.parameters())


def test_the_dense_parts_numbers():
    """By hand: 13 -> 8 -> 4, three vectors of 4, top 4 + 3 -> 2 -> 1."""
    section = ModelSection(num_embeddings=(10, 10), embedding_dim=4, bottom_mlp=(8, 4), top_mlp=(2, 1))
    dense = subject_of(section).dense
    assert dense.parameter_bytes == 4 * ((13 * 8 + 8) + (8 * 4 + 4) + (7 * 2 + 2) + (2 * 1 + 1))
    products = 13 * 8 + 8 * 4 + 3 * 3 * 4 + 8 * 2 + 2 * 1  # the top MLP's 7 columns are padded to 8
    assert dense.forward_flop_per_sample == 2 * products
    assert dense.input_bytes_per_sample == 4 * 15 + 2 * 12
    first_inputs = 13 * 8  # a layer's backward is two products, but nothing asks for the gradient of the dense inputs
    pairs = 3 * 3 * 4  # the Gram matrix is symmetric: one product
    assert dense.backward_flop_per_sample == 2 * (2 * (products - first_inputs - 3 * 3 * 4) + first_inputs + pairs)


def test_mlperfs_dense_part_has_16_million_products():
    from dlrm_dist import config

    model = config.load(["--config", str(ROOT / "launch/configs/mlperf_dcnv2.toml")]).model
    assert subject_of(model).dense.forward_flop_per_sample == pytest.approx(2 * 16.0e6, rel=0.01)


def test_one_rank_pays_for_no_exchange(model):
    plan = plan_for(model, load_cluster("h100:1x1"), Request(4096, ALL_TYPES))
    shards = [shard for estimate in plan.estimates.values() for shard in estimate.shards]
    assert sum(shard.forward_exchange + shard.id_exchange for shard in shards) == 0
    assert {sharding.sharding_type for _, sharding in plan.placed()} <= {"table_wise", "data_parallel", "column_wise"}


def test_alternatives_are_what_the_planner_would_have_got(model):
    """The cost of the other way for one table equals that of a plan in which only that table is so."""
    names = ["t_C1", "t_C2", "t_C3", "t_C4"]

    def fixed(first):
        rules = tuple(
            Rule(pattern=name, sharding_types=("table_wise",), ranks=(number,)) for number, name in enumerate(names)
        )
        kinds = (Rule(pattern="t_C1", sharding_types=first), *rules[1:])
        return plan_for(model, load_cluster("h100:1x4"), Request(4096, ALL_TYPES, kinds))

    both = fixed(("table_wise", "row_wise"))
    chosen = placed(both, "t_C1").sharding_type
    (other,) = both.estimates["t_C1"].alternatives
    alone = fixed((other.sharding_type,))
    loads = [0.0] * 4
    for estimate in alone.estimates.values():
        for shard in estimate.shards:
            loads[shard.rank] += shard.milliseconds
    assert other.sharding_type != chosen
    assert other.slowest_rank == pytest.approx(max(loads), abs=1e-5)


def cramped(gib):
    return load_cluster("h100:1x2").with_constant("hbm_gib", gib / 0.85, "a test")


def refusal(model, cluster, request):
    shape = model_shape(DataSection(path="nowhere"), model)
    with pytest.raises(NothingFitsError) as error:
        plan_model(model, OptimizerSection(), shape, cluster, request)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_nothing_fits_in_all(model):
    """2M x 32 in fp32 and the rest need .2521 GiB; two ranks have .2."""
    said = refusal(model, cramped(0.1), REQUEST)
    assert re.search(r"no plan fits 2 ranks of 0\.1 GiB", said)
    assert "weights and optimizer state take 0.3 GiB (the largest: t_C1 0.2 GiB, t_C2 0.0 GiB, t_C4 0.0 GiB)" in said
    assert "0.1 GiB more than all ranks have" in said
    for way_out in ("ranks 4 (cluster h100:1x4)", "dim 16", "kernel fused_uvm_caching", "precision fp16"):
        assert way_out in said


def test_one_table_is_larger_than_a_rank(model):
    said = refusal(model, cramped(0.2), Request(4096, ("table_wise",)))
    assert "larger than a rank are t_C1 by 0.0 GiB" in said
    assert "types ['table_wise', 'row_wise', 'column_wise']" in said


@pytest.mark.parametrize("change", [{"embedding_dim": 16, "bottom_mlp": (64, 16)}])
def test_what_is_advised_fits(model, change):
    assert check.problems(plan_for(model.model_copy(update=change), cramped(0.1), REQUEST)) == []
    assert check.problems(plan_for(model, cramped(0.1).resized(1, 4), REQUEST)) == []


def test_fit_finds_the_smallest_size(model):
    """A rank holds less than half of the tables, two hold them by rows."""
    cluster = load_cluster("h100").with_constant("hbm_gib", 0.16 / 0.85, "a test")
    found = list(fit.points(cluster, 32, lambda sized: plan_for(model, sized, REQUEST)))
    assert [point.cluster.size for point in found] == ["1x1", "1x2", "1x4", "1x8", "2x8", "4x8"]
    assert [point.step is not None for point in found] == [False, True, True, True, True, True]
    lines = fit.table(found)
    assert "does not fit" in lines[1]
    assert all("samples" not in line for line in lines[1:])
    assert json.loads(json.dumps([fit.as_dict(point) for point in found]))[1]["step_ms"]["serial"] > 0


@pytest.mark.parametrize("rows", range(1, 40))
@pytest.mark.parametrize("parts", [1, 2, 3, 4, 8])
def test_parts_with_rows(rows, parts):
    block = -(-rows // parts)
    assert every_part_has_rows(rows, parts) == all(min(rows, (i + 1) * block) > i * block for i in range(parts))


def test_expanded_ids_are_planned_for():
    model = ModelSection(num_embeddings=(10, 20), embedding_dim=16)
    shape = model_shape(DataSection(path="nowhere", expand_multi_hot=(3, 1)), model)
    assert [feature.ids_per_sample for feature in shape.features] == [3, 1]
    with pytest.raises(UserError, match=r"data.expand_multi_hot has 1 values for 2 categories"):
        model_shape(DataSection(path="nowhere", expand_multi_hot=(3,)), model)

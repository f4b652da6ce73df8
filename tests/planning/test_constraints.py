import pytest

from dlrm_dist.errors import UserError
from dlrm_dist.planning.cluster import PLANS, load_cluster
from dlrm_dist.planning.constraints import load_rules, rule_of
from dlrm_dist.planning.planner import Request
from tests.planning.make import placed, plan_for

TYPES = ("table_wise", "row_wise")


def rules(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return load_rules(path)


def table(pattern, types, more=""):
    return f'[[table]]\npattern = "{pattern}"\nsharding_types = {list(types)}\n{more}\n'.replace("'", '"')


def plan(model, found, size="h100:2x2"):
    return plan_for(model, load_cluster(size), Request(4096, TYPES, found))


def test_the_first_match_wins(tmp_path, model):
    found = rules(tmp_path, table("t_C1", ["row_wise"]) + table("t_C3", ["data_parallel"]) + table("*", ["table_wise"]))
    assert rule_of("t_C1", found).sharding_types == ("row_wise",)
    made = plan(model, found)
    assert [placed(made, f"t_C{i}").sharding_type for i in range(1, 5)] == [
        "row_wise",
        "table_wise",
        "data_parallel",
        "table_wise",
    ]
    assert made.inputs.constraints == found


def test_a_table_without_a_match_is_an_error(tmp_path, model):
    with pytest.raises(UserError, match=r'no pattern matches table t_C2.*pattern = "\*"'):
        plan(model, rules(tmp_path, table("t_C1", ["row_wise"])))


def test_a_pattern_that_no_table_needs_is_an_error(tmp_path, model):
    with pytest.raises(UserError, match="'t_D1' is no table's first match"):
        plan(model, rules(tmp_path, table("t_D1", ["row_wise"]) + table("*", ["table_wise"])))


def test_fixed_ranks(tmp_path, model):
    text = table("t_C1", ["column_wise"], "ranks = [3, 1]") + table("t_C2", ["table_wise"], "ranks = [2]")
    made = plan(model, rules(tmp_path, text + table("*", TYPES)))
    assert placed(made, "t_C1").ranks == (3, 1)
    assert [shard.placement for shard in placed(made, "t_C1").shards] == ["rank:3/cuda:1", "rank:1/cuda:1"]
    assert placed(made, "t_C2").ranks == (2,)


@pytest.mark.parametrize(("least", "kind"), [(1, "table_wise"), (2, "column_wise"), (4, "row_wise")])
def test_a_least_number_of_ranks(tmp_path, model, least, kind):
    """Only one of the three types spreads the table so far at so few shards."""
    allowed = {1: ["table_wise"], 2: ["table_wise", "column_wise"], 4: ["table_wise", "row_wise"]}[least]
    made = plan(model, rules(tmp_path, table("t_C1", allowed, f"min_ranks = {least}") + table("*", TYPES)))
    assert placed(made, "t_C1").sharding_type == kind
    assert len(set(placed(made, "t_C1").ranks)) >= least


def test_more_ids_a_sample_cost_more(tmp_path, model):
    few = plan(model, rules(tmp_path, table("*", ["table_wise"])))
    many = plan(
        model, rules(tmp_path, table("t_C1", ["table_wise"], "pooling_factor = 20.0") + table("*", ["table_wise"]))
    )
    lookup = [each.estimates["t_C1"].shards[0].lookup for each in (few, many)]
    assert lookup[1] > 5 * lookup[0]


def test_a_kernel(tmp_path, model):
    made = plan(model, rules(tmp_path, table("*", ["table_wise"], 'compute_kernels = ["fused_uvm"]')))
    assert placed(made, "t_C1").compute_kernel == "fused_uvm"
    assert made.estimates["t_C1"].shards[0].ddr > 2_000_000 * 32 * 4


@pytest.mark.parametrize(
    ("more", "types", "said"),
    [
        ("ranks = [9]", ["table_wise"], "fixed to rank 9.*there are 4 ranks"),
        ("ranks = [0, 1]", ["table_wise"], "lies on one rank, not on 2"),
        ("ranks = [1, 1]", ["column_wise"], "each once"),
        ("ranks = [0]", ["row_wise"], "fixed for table_wise and column_wise only"),
        ("min_ranks = 5", ["table_wise", "row_wise"], "cannot be table_wise or row_wise on 2x2 ranks"),
        ("min_ranks = 0", ["table_wise"], "min_ranks"),
        ("rank = [1]", ["table_wise"], "rank"),
        ("", ["table_size"], "sharding_types"),
        ("", [], "sharding_types"),
    ],
)
def test_what_cannot_be_met(tmp_path, model, more, types, said):
    with pytest.raises(UserError, match=said) as error:
        plan(model, rules(tmp_path, table("t_C1", types, more) + table("*", TYPES)))
    assert "\n" not in str(error.value)


def test_a_table_too_small_to_be_cut(tmp_path, model):
    with pytest.raises(UserError, match=r"t_C3 \(3 x 32\) cannot be row_wise.*allow table_wise or data_parallel"):
        plan(model, rules(tmp_path, table("*", ["row_wise"])))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"known constraints are .*mlperf_dcnv2"):
        load_rules("none-of-that-name")
    with pytest.raises(UserError, match="not valid TOML"):
        rules(tmp_path, "[[table]")


def test_the_shipped_files_load():
    files = list((PLANS / "constraints").glob("*.toml"))
    assert files
    for file in files:
        assert load_rules(file.stem) == load_rules(file)

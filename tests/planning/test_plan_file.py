import dataclasses
import json

import pytest
from fbgemm_gpu.tbe.cache.cache_config import CacheAlgorithm
from torchrec.distributed.types import BoundsCheckMode, CacheParams, KeyValueParams, ParameterSharding
from torchrec.modules.embedding_configs import DataType

from dlrm_dist.errors import UserError
from dlrm_dist.planning import plan_file, torchrec_plan
from dlrm_dist.planning.cluster import load_cluster
from dlrm_dist.planning.constraints import Rule
from dlrm_dist.planning.planner import Request
from tests.planning.make import ALL_TYPES, placed, plan_for


@pytest.fixture(scope="module")
def mixed(model):
    """Each of the four tables of another type; three more types in the tests below."""
    kinds = {"t_C1": "grid_shard", "t_C2": "column_wise", "t_C3": "data_parallel", "t_C4": "row_wise"}
    rules = tuple(Rule(pattern=name, sharding_types=(kind,)) for name, kind in kinds.items())
    return plan_for(model, load_cluster("cpu:2x2"), Request(512, ALL_TYPES, rules))


@pytest.mark.parametrize("kind", ALL_TYPES)
def test_every_type_survives_the_file(model, tmp_path, kind):
    rules = (Rule(pattern="t_C3", sharding_types=("data_parallel",)), Rule(pattern="*", sharding_types=(kind,)))
    plan = plan_for(model, load_cluster("cpu:2x2"), Request(512, ALL_TYPES, rules))
    assert placed(plan, "t_C1").sharding_type == kind
    assert_survives(plan, tmp_path)


def test_a_mixed_plan_survives_the_file(mixed, tmp_path):
    assert_survives(mixed, tmp_path)


def assert_survives(plan, folder):
    plan.write(folder / "a.plan.json")
    again = plan_file.read(folder / "a.plan.json")
    assert again == plan
    assert again.digest == again.inputs.digest()
    torchrec = torchrec_plan.to_torchrec(again)
    assert torchrec_plan.from_torchrec(torchrec) == plan.modules
    assert [path.name for path in folder.iterdir()] == ["a.plan.json"]


def test_every_field_of_a_parameter_sharding_survives(mixed):
    """The fields that the planner leaves empty here, too."""
    plan = torchrec_plan.to_torchrec(mixed)
    (module,) = plan.plan.values()
    sharding = module["t_C1"]
    sharding.cache_params = CacheParams(
        algorithm=CacheAlgorithm.LFU, load_factor=0.3, precision=DataType.FP16, prefetch_pipeline=True
    )
    sharding.enforce_hbm = True
    sharding.stochastic_rounding = False
    sharding.bounds_check_mode = BoundsCheckMode.WARNING
    sharding.output_dtype = DataType.BF16
    sharding.key_value_params = KeyValueParams(l2_cache_size=3, ps_hosts=(("::1", 2000), ("::1", 2001)))
    assert all(getattr(sharding, field.name) is not None for field in dataclasses.fields(ParameterSharding))
    modules = torchrec_plan.from_torchrec(plan)
    text = mixed.model_copy(update={"modules": modules}).model_dump_json()
    back = torchrec_plan.to_torchrec(plan_file.PlanFile.model_validate(json.loads(text)))
    (module,) = back.plan.values()
    assert module["t_C1"] == sharding


def test_fields_are_those_of_torchrec():
    """A field that a later TorchRec adds must not be dropped silently."""
    ours = set(plan_file.TableSharding.model_fields) - {"shards"} | {"sharding_spec"}
    assert ours == {field.name for field in dataclasses.fields(ParameterSharding)}


def test_a_plan_says_what_it_was_made_from(mixed):
    assert {"dlrm_dist", "torch", "torchrec"} <= set(mixed.inputs.versions)
    assert mixed.inputs.cluster == load_cluster("cpu:2x2")
    assert [table.rows for table in mixed.inputs.tables] == [2_000_000, 50_000, 3, 700]
    assert mixed.inputs.batch_size == 512
    other = mixed.inputs.model_copy(update={"batch_size": 1024})
    assert other.digest() != mixed.digest
    assert mixed.inputs.model_copy(update={"versions": {}}).digest() == mixed.digest


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda values: values.update(version=1), "version 1, this program reads version 2"),
        (lambda values: values.pop("version"), "version None"),
        (lambda values: values.pop("inputs"), "inputs: Field required"),
        (lambda values: values.update(more=1), "more: Extra inputs"),
    ],
)
def test_a_file_of_another_form(mixed, tmp_path, change, said):
    values = json.loads(mixed.model_dump_json())
    change(values)
    path = tmp_path / "a.plan.json"
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=said) as error:
        plan_file.read(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe"])
def test_a_file_that_is_none(tmp_path, content):
    path = tmp_path / "a.plan.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is not a plan file"):
        plan_file.read(path)


def test_a_file_that_cannot_be_read_or_written(mixed, tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        plan_file.read(tmp_path / "none")
    with pytest.raises(UserError, match="cannot be written"):
        mixed.write(tmp_path / "no" / "folder.json")


@pytest.mark.parametrize(
    ("ranks", "text"),
    [(None, "all"), ((3,), "3"), ((0, 2), "0,2"), ((0, 1, 2, 3), "0-3"), ((0, 0, 1), "0,1"),
     (tuple(range(0, 40, 2)), "0,2,4,6,8,10,12,14,… (20)")],
)  # fmt: skip
def test_ranks_in_short(ranks, text):
    assert plan_file.rank_text(ranks) == text

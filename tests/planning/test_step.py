import json
import re

import pytest

from dlrm_dist.planning import diff, explain, measured, page, step
from dlrm_dist.planning.cluster import load_cluster
from dlrm_dist.planning.planner import Request
from tests.planning.make import plan_for


def test_a_step_by_hand(plan):
    """4096 rows on 2 x 2 GPUs: 1024 a rank, the constants of h100."""
    found = step.predict(plan)
    dense = plan.inputs.dense
    assert found.parts["dense_forward"] == pytest.approx(dense.forward_flop_per_sample * 1024 / (67e9 * 0.6))
    assert found.parts["all_reduce"] == pytest.approx(2 * 3 / 4 * dense.parameter_bytes / (100e6 * 0.75))
    assert found.parts["input"] == pytest.approx(dense.input_bytes_per_sample * 1024 * (1 / 2e6 + 1 / 64e6))
    assert found.parts["overhead"] == 2
    kinds = {sharding.sharding_type for _, sharding in plan.placed()}
    assert found.parts["latency"] == pytest.approx((4 * len(kinds) + 1) * 60 / 1e3)
    assert found.serial == pytest.approx(sum(found.parts.values()))
    assert found.overlapped == max(found.resources().values())
    assert sum(found.resources().values()) == pytest.approx(found.serial)
    assert found.samples_per_s()[0] == pytest.approx(4096 / found.serial * 1e3)


def test_gradients_that_are_reduced_host_by_host(model):
    """On 2 x 2: over NVLink 2 x 1/2 in fp32 and 1/2 in bf16, over each NIC half of it, twice 1/2 of it, in bf16."""
    request = Request(4096, ("table_row_wise",), comm_precision="fp16_between_hosts")
    found = step.predict(made := plan_for(model, load_cluster("h100:2x2"), request))
    size = made.inputs.dense.parameter_bytes
    assert found.parts["all_reduce"] == pytest.approx(size * (1.25 / 450e6 + 0.25 / 50e6) / 0.75)


def test_only_the_stage_between_hosts_is_cheaper(model):
    """Table-row-wise on 2 x 2: a reduce-scatter inside the host, then an all-to-all between hosts."""
    took = {}
    for precision in ("fp32", "int8_between_hosts", "fp16_between_hosts", "fp16"):
        request = Request(4096, ("table_row_wise",), comm_precision=precision)
        took[precision] = step.predict(plan_for(model, load_cluster("h100:2x2"), request)).parts["forward_exchange"]
    assert took["int8_between_hosts"] < took["fp16_between_hosts"] < took["fp32"]
    assert took["fp16"] < took["fp16_between_hosts"]
    inside = 2 * (took["fp16_between_hosts"] - took["fp16"])  # fp16 halves the stage inside a host
    assert took["fp32"] - inside == pytest.approx(2 * (took["fp16_between_hosts"] - inside))


def test_the_slowest_rank(plan):
    loads = step.rank_loads(plan)
    found = step.predict(plan)
    assert len(loads) == 4
    assert loads[found.slowest_rank].total == max(load.total for load in loads)
    assert found.imbalance == pytest.approx(max(load.total for load in loads) / (sum(load.total for load in loads) / 4))
    assert sum(load.total for load in loads) == pytest.approx(
        sum(shard.milliseconds for each in plan.estimates.values() for shard in each.shards)
    )


def test_explanation_as_values_text_and_page(plan, tmp_path):
    found = json.loads(json.dumps(explain.explain(plan)))
    assert [table["name"] for table in found["tables"]] == ["t_C1", "t_C2", "t_C3", "t_C4"]
    assert len(found["ranks"]) == 4
    assert found["problems"] == []
    assert found["step"]["parts"].keys() == set(step.PARTS)
    assert {constant["kind"] for constant in found["constants"].values()} == {"measured", "published", "assumed"}
    assert sum(table["gib"] for table in found["tables"]) == pytest.approx(
        sum(rank["hbm_gib"] + rank["ddr_gib"] for rank in found["ranks"]), rel=1e-3
    )
    text = "\n".join(explain.text(found))
    for word in ("t_C4", "next best", "slowest rank", "imbalance", "overlapped", "assumed", "of cap"):
        assert word in text
    page.write(found, plan, tmp_path / "p.html")
    html = (tmp_path / "p.html").read_text()
    assert html.count("<svg") == 2
    assert not re.search(r"(src|href)=|https?://", html), "the page must stand alone"
    heights = [float(h) for h in re.findall(r'<rect [^>]*height="([\d.]+)"', html)]
    assert len(heights) >= 4
    assert max(heights) <= 260
    assert html.count("t_C1") >= 3


def test_a_page_of_many_ranks_stays_small(model, tmp_path):
    plan = plan_for(model, load_cluster("h100:32x8"), Request(4096, ("table_wise", "row_wise")))
    page.write(explain.explain(plan), plan, tmp_path / "p.html")
    assert (tmp_path / "p.html").stat().st_size < 400_000
    assert "a bar is the mean of 2 ranks" in (tmp_path / "p.html").read_text()


def run_folder(tmp_path, lines):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def report(step_ms, **split):
    return {"split": "train", "step": 1, "step_ms": step_ms, "split_ms": split}


def test_measured_beside_predicted(plan, tmp_path):
    lines = [report(90, input=9), report(10, input=1, lookup=2), {"split": "valid", "step": 1}, report(20, input=3)]
    run = measured.read_run(run_folder(tmp_path, lines))
    assert (run.step, run.parts, run.reports) == (15, {"input": 2}, 2)  # without the first, the parts all have
    text = "\n".join(explain.text(explain.explain(plan, run)))
    assert re.search(r"input +[\d.]+ +2\.000", text)
    assert re.search(r"measured +15\.000 ms, [\d.]+ of serial", text)


def test_a_run_without_step_times(tmp_path):
    from dlrm_dist.errors import UserError

    with pytest.raises(UserError, match="has reported no step times"):
        measured.read_run(run_folder(tmp_path, [{"split": "valid"}]))
    with pytest.raises(UserError, match="is not the folder of a run"):
        measured.read_run(tmp_path / "none")


def test_diff_of_a_plan_with_itself(plan):
    found = diff.compare(plan, plan)
    assert found["tables"] == {}
    assert found["unmoved"] == 4
    assert found["inputs"] == []
    assert "0 tables moved, 4 stay where they are" in diff.text(plan, plan)


def test_diff_names_what_moved(plan, model):
    other = plan_for(model, load_cluster("h100:2x2"), Request(4096, ("row_wise",)))
    found = diff.compare(plan, other)
    text = "\n".join(diff.text(plan, other))
    for name, each in found["tables"].items():
        assert f"{name}: {each['old']} -> {each['new']}" in text
    assert found["tables"]
    assert "made from other inputs: sharding_types" in text
    assert "predicted step, serial, ms" in text


@pytest.mark.parametrize(("precision", "faster"), [("fp32", 1), ("tf32", 989 / 2 / 67), ("bf16", 989 / 67)])
def test_the_dense_layers_go_at_the_rate_of_their_precision(model, precision, faster):
    """Of the H100's data sheet; everything else is as in fp32, and so is the placement."""
    requests = [Request(4096, ("table_wise",), dense_precision=each) for each in ("fp32", precision)]
    slow, fast = (plan_for(model, load_cluster("h100:1x2"), request) for request in requests)
    before, after = step.predict(slow).parts, step.predict(fast).parts
    for part in before:
        ratio = faster if part in ("dense_forward", "dense_backward") else 1
        assert before[part] == pytest.approx(after[part] * ratio), part
    assert slow.modules == fast.modules

"""The parts of a step, from profiles of operations whose time is known."""

import gzip
import json
import time

import pytest
import torch
from torch.profiler import record_function

from dlrm_dist.step_split import STEPS, StepSplit, verdict


def spend(name, milliseconds):
    with record_function(name):
        ends = time.perf_counter() + milliseconds / 1e3
        while time.perf_counter() < ends:
            pass


def profiled(tmp_path, step, every=STEPS + 2, steps=None):
    split = StepSplit(True, every, torch.device("cpu"), tmp_path / "trace" / "rank0.json.gz")
    with split.recording():
        for number in range(1, (steps or every) + 1):
            with split.step(number):
                step()
    return split


def test_each_moment_belongs_to_the_innermost_known_operation(tmp_path):
    def step():
        with record_function("## copy_batch_to_gpu 3 ##"):
            spend("## next_batch ##", 4)
            spend("aten::copy_", 2)
        with record_function("## forward 3 ##"):
            spend("[lookup]_[model.embeddings]_[table_wise]", 8)
            with record_function("[output_dist_wait]_[model.embeddings]_[row_wise]"):
                spend("ReduceScatterBase_Wait", 3)
            spend("aten::addmm", 6)
        with record_function("## backward 3 ##"):
            spend("torch::autograd::CppNode<SplitLookupFunction_sgd_Op_pt2>", 5)
            spend("ReduceScatterBase_WaitBackward", 2)
            spend("All2All_Pooled_ReqBackward", 2)
            spend("aten::mm", 3)
            time.sleep(0.007)  # for the all-reduce, behind the last gradient
        spend("something of ours", 2)

    found = profiled(tmp_path, step).milliseconds
    expected = {"input": 4, "copy": 2, "lookup": 8, "dense_forward": 6, "update": 5, "dense_backward": 3}
    expected |= {"all_reduce": 7, "overhead": 2, "forward_exchange": 3, "backward_exchange": 4}
    assert found.keys() == expected.keys()
    for part, milliseconds in expected.items():  # a busy machine makes them longer, never shorter
        assert found[part] >= milliseconds * 0.99, part


def test_the_parts_add_up_to_the_step(tmp_path):
    seconds = []

    def step():
        started = time.perf_counter()
        a = torch.ones(300, 300)
        with record_function("## forward 1 ##"):
            for _ in range(20):
                a = a @ a * 1e-3
        seconds.append(time.perf_counter() - started)

    split = profiled(tmp_path, step)
    mean = sum(seconds[-STEPS:]) / STEPS * 1e3
    assert sum(split.milliseconds.values()) == pytest.approx(mean, rel=0.1)
    assert sum(split.of(50.0).values()) == pytest.approx(50.0)


def test_every_reports_last_steps_are_profiled_and_the_first_traced(tmp_path):
    lengths = iter([1] * 6 + [4] * 6)
    split = profiled(tmp_path, lambda: spend("## forward 1 ##", next(lengths)), every=6, steps=12)
    assert 4 <= split.milliseconds["dense_forward"] < 40
    with gzip.open(tmp_path / "trace" / "rank0.json.gz", "rt") as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    assert names.count("## train step ##") == STEPS


@pytest.mark.parametrize("every", [1, 2, 3, 4])
@pytest.mark.parametrize("steps", [8, 9, 10, 11])
def test_reports_of_few_steps_and_runs_that_end_between_them(tmp_path, every, steps):
    assert profiled(tmp_path, lambda: spend("aten::mm", 1), every=every, steps=steps).milliseconds


def test_nothing_is_profiled_unless_wanted(tmp_path):
    split = StepSplit(False, 5, torch.device("cpu"), tmp_path / "trace")
    with split.recording(), split.step(5):
        pass
    assert split.of(3.0) == {} and not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("parts", "bound"),
    [
        ({"input": 5.0, "copy": 1.0, "lookup": 3.0, "all_reduce": 2.0}, "input"),
        ({"input": 1.0, "id_exchange": 3.0, "forward_exchange": 3.0, "dense_forward": 5.0}, "communication"),
        ({"input": 1.0, "dense_forward": 2.0, "update": 2.0, "all_reduce": 3.0}, "compute"),
    ],
)
def test_the_verdict(parts, bound):
    assert verdict(parts) == bound

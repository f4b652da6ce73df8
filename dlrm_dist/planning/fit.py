"""How many devices a model needs, and what more of them bring: a plan and a predicted step for each size."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from dlrm_dist.errors import NothingFitsError
from dlrm_dist.planning import step
from dlrm_dist.planning.cluster import Cluster
from dlrm_dist.planning.plan_file import PlanFile


@dataclass(frozen=True)
class Point:
    """One size: the prediction, or None where no plan fits."""

    cluster: Cluster
    step: step.Step | None


def sizes(cluster: Cluster, most: int) -> Iterator[Cluster]:
    """One device, then twice as many again and again: up to a whole host, then hosts."""
    devices = 1
    while devices < cluster.devices_per_host and devices <= most:
        yield cluster.resized(1, devices)
        devices *= 2
    hosts = 1
    while hosts * cluster.devices_per_host <= most:
        yield cluster.resized(hosts, cluster.devices_per_host)
        hosts *= 2


def points(cluster: Cluster, most: int, plan: Callable[[Cluster], PlanFile]) -> Iterator[Point]:
    """Each size up to `most` devices, as it is planned."""
    for sized in sizes(cluster, most):
        try:
            yield Point(sized, step.predict(plan(sized)))
        except NothingFitsError:
            yield Point(sized, None)


def as_dict(point: Point) -> dict[str, Any]:
    """A size as plain values."""
    values: dict[str, Any] = {
        "ranks": point.cluster.world_size,
        "size": point.cluster.size,
        "fits": point.step is not None,
    }
    if point.step:
        slow, fast = point.step.samples_per_s()
        values |= {
            "step_ms": {"serial": point.step.serial, "overlapped": point.step.overlapped},
            "samples_per_s": {"serial": slow, "overlapped": fast},
            "bound": point.step.bound,
            "parts_ms": point.step.parts,
        }
    return values


HEADER = f"{'ranks':>6} {'hosts':>7} {'serial ms':>10} {'overlapped ms':>14} {'samples/s':>26} {'bound by':<14} curve"


def line(point: Point, scale: float) -> str:
    """A size as a line of the table; `scale` is the samples/s of a bar of full length."""
    size = f"{point.cluster.world_size:>6} {point.cluster.size:>7}"
    if point.step is None:
        return f"{size} does not fit"
    slow, fast = point.step.samples_per_s()
    bar = "#" * max(1, round(30 * slow / scale)) + "-" * round(30 * (fast - slow) / scale)
    return (
        f"{size} {point.step.serial:>10.2f} {point.step.overlapped:>14.2f} {f'{slow:,.0f} to {fast:,.0f}':>26} "
        f"{point.step.bound:<14} {bar}"
    )


def table(found: list[Point]) -> list[str]:
    """All sizes, with a bar to the serial (#) and on to the overlapped (-) samples/s."""
    scale = max((each.step.samples_per_s()[1] for each in found if each.step), default=1.0)
    return [HEADER, *(line(each, scale) for each in found)]

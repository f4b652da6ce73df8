"""What is slower than the known cluster of the device, or than the other hosts, and what that costs a step."""

from collections.abc import Callable, Iterator
from statistics import mean, median

from dlrm_dist.doctor import links
from dlrm_dist.doctor.examination import Found
from dlrm_dist.doctor.finding import Finding
from dlrm_dist.doctor.speed import Speed
from dlrm_dist.planning.cluster import Cluster

_SLOW = 0.5
"""Share of what is expected below which a figure is worth a line: hosts of one kind differ by a third."""
_STRAGGLES = 0.7
"""The same of a host's figure among those of the other hosts."""
_ROWS, _TABLES, _DIM, _FLOAT = 2048, 26, 128, 4
"""Of the step that a slow link is explained with: rows of a rank, fp32."""


def findings(found: Found, known: Cluster) -> Iterator[Finding]:
    """Links, memory, arithmetic; hosts that lag behind the others."""
    yield from _link(found, known, links.INSIDE, "intra_host_gb_s", found.ranks_per_host)
    yield from _link(found, known, links.BETWEEN, "inter_host_gb_s", found.hosts)
    yield from _speed(found, known)
    for what, figure in _FIGURES.items():
        yield from _stragglers(found, what, figure)


_FIGURES: dict[str, Callable[[Speed], float]] = {
    "memory": lambda speed: speed.memory_gb_s,
    "fp32 arithmetic": lambda speed: speed.fp32_tflop_s,
}


def exchange_seconds(gb_s: float, ranks: int) -> float:
    """Of the embeddings of a step and of their gradients, among so many ranks or hosts."""
    return 2 * _ROWS * _TABLES * _DIM * _FLOAT * (ranks - 1) / ranks / gb_s / 1e9


def _link(found: Found, known: Cluster, scope: str, key: str, ranks: int) -> Iterator[Finding]:
    rate = links.rate(found.lines, scope)
    expected = known.value(key) * known.value("link_efficiency")
    if rate is None or rate >= expected * _SLOW:
        return
    seconds = exchange_seconds(rate, ranks)
    way_out = (
        "look at the interface that is taken (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME) and its speed (ethtool)"
        if scope == links.BETWEEN
        else "give each rank cores of its own; on GPUs look at nvidia-smi topo -m"
    )
    yield Finding(
        "warning",
        scope,
        f"{rate * 1e3:,.0f} MB/s a rank",
        f"{expected * 1e3:,.0f} MB/s (cluster {known.name})",
        f"the exchange of {_ROWS:,} rows a rank x {_TABLES} tables x {_DIM}, there and back, takes {seconds:.2g} s a "
        "step",
        way_out,
    )


def _speed(found: Found, known: Cluster) -> Iterator[Finding]:
    named = {
        "memory bandwidth": ("ddr_gb_s", min(each.memory_gb_s for each in found.speeds), "GB/s", "lookups"),
        "fp32 arithmetic": ("fp32_tflop_s", min(each.fp32_tflop_s for each in found.speeds), "TFLOP/s", "dense layers"),
    }
    for what, (key, value, unit, work) in named.items():
        expected = known.value(key)
        if value < expected * _SLOW:
            yield Finding(
                "warning",
                what,
                f"{value:.3g} {unit} of the slowest rank",
                f"{expected:.3g} {unit} (cluster {known.name})",
                f"{work} take {expected / value:.1f} times as long as that cluster's",
                "end what else runs there; plan with the file of --out",
            )


def _stragglers(found: Found, what: str, figure: Callable[[Speed], float]) -> Iterator[Finding]:
    """Hosts behind the others: a step waits for the slowest."""
    means = [mean(figure(found.speeds[rank]) for rank in found.of_host(number)) for number in range(found.hosts)]
    for number, value in enumerate(means if found.hosts > 1 else ()):
        others = median(means[:number] + means[number + 1 :])
        if value < others * _STRAGGLES:
            yield Finding(
                "warning",
                f"{what} of {found.name(number)}",
                f"{value / others:.0%} of the other hosts'",
                f"{_STRAGGLES:.0%} or more",
                "every step waits for it",
                "see what else runs there, or leave the host out",
            )

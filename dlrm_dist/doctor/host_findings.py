"""What is amiss with hosts as they are set up: versions, cores, memory, limits, clocks."""

from collections.abc import Iterator, Mapping, Sequence

from dlrm_dist.doctor.examination import Found
from dlrm_dist.doctor.finding import Finding
from dlrm_dist.doctor.host import cores_of
from dlrm_dist.packages import mismatch

_SHM_GIB = 1.0
_FREE_GIB = 2.0
"""Of a rank: PyTorch and the libraries take half of one before there is a table."""
_SOCKETS = 16
"""Files of a rank for each other rank, over several process groups; what else it needs."""
_OTHER_FILES = 512
_SKEW_S = 0.1


def findings(found: Found) -> Iterator[Finding]:
    """In the order of the fields."""
    yield from _pairs(found)
    yield from _torchrec(found)
    yield from _differences(found)
    for number in range(found.hosts):
        yield from _cores(found, number)
        yield from _memory(found, number)
        yield from _limits(found, number)
    yield from _clocks(found)


def _pairs(found: Found) -> Iterator[Finding]:
    """Each wrong pair once, and kernels that do not load though the pair is right."""
    wrong: dict[str, list[int]] = {}
    for each in found.facts:
        problem = mismatch(each.versions["torch"], each.versions["fbgemm_gpu"]) or each.kernels_problem
        if problem:
            wrong.setdefault(problem, []).append(each.rank)
    for problem, ranks in wrong.items():
        yield Finding(
            "broken",
            "torch and fbgemm_gpu",
            f"{problem} ({_ranks(ranks)})",
            "a pair that loads",
            "no model can be trained or loaded",
            "install the pins of pyproject.toml: make",
        )


def _torchrec(found: Found) -> Iterator[Finding]:
    """A TorchRec of another series than FBGEMM; where ranks differ, that is said already."""
    pairs = {(each.versions["torchrec"], each.versions["fbgemm_gpu"]) for each in found.facts}
    torchrec, fbgemm = next(iter(pairs))
    if len(pairs) == 1 and torchrec.split(".")[:2] != fbgemm.split(".")[:2]:
        yield Finding(
            "broken",
            "torchrec and fbgemm_gpu",
            f"torchrec {torchrec} with fbgemm_gpu {fbgemm}",
            "releases of one series, such as 1.8",
            "TorchRec calls kernels that are not there, or are called otherwise",
            "install the pins of pyproject.toml: make",
        )


def _differences(found: Found) -> Iterator[Finding]:
    for package in found.facts[0].versions:
        by_version: dict[str, list[int]] = {}
        for each in found.facts:
            by_version.setdefault(each.versions[package], []).append(each.rank)
        if len(by_version) > 1:
            yield Finding(
                "broken",
                f"versions of {package}",
                _by_value(by_version),
                "one version on all ranks",
                "ranks that disagree hang in a collective, or exchange what the others do not understand",
                "install the same on all hosts",
            )


def _cores(found: Found, number: int) -> Iterator[Finding]:
    facts = [found.facts[rank] for rank in found.of_host(number)]
    cores, threads = cores_of(facts), sum(each.threads for each in facts)
    if threads > cores:
        yield Finding(
            "warning",
            f"cores of {found.name(number)}",
            f"{threads} threads of {len(facts)} ranks on {cores} cores",
            "a core for each thread",
            f"arithmetic takes {threads / cores:.1f} times as long, and every rank waits for the slowest",
            f"use --runtime.threads {max(1, cores // len(facts))}, or fewer ranks",
        )


def _memory(found: Found, number: int) -> Iterator[Finding]:
    first, ranks = found.facts[found.of_host(number)[0]], found.ranks_per_host
    if first.available_gib < ranks * _FREE_GIB:
        yield Finding(
            "warning",
            f"memory of {found.name(number)}",
            f"{first.available_gib:.1f} GiB free for {ranks} ranks",
            f"{_FREE_GIB:g} GiB a rank and the tables",
            "a rank that gets none is killed",
            "end what else runs there, or use fewer ranks a host",
        )


def _limits(found: Found, number: int) -> Iterator[Finding]:
    first, needed = found.facts[found.of_host(number)[0]], _OTHER_FILES + _SOCKETS * found.ranks
    if first.open_files < needed:
        yield Finding(
            "warning",
            f"open files of {found.name(number)}",
            f"{first.open_files:,} a process",
            f"{needed:,} or more for {found.ranks} ranks",
            "process groups fail with 'Too many open files'",
            "raise it: ulimit -n 65536",
        )
    if first.shm_gib is not None and first.shm_gib < _SHM_GIB and found.ranks_per_host > 1:
        yield Finding(
            "warning",
            f"/dev/shm of {found.name(number)}",
            f"{first.shm_gib * 1024:.0f} MiB",
            f"{_SHM_GIB:g} GiB or more",
            "NCCL fails to start between the ranks of a host, or falls back to a slower way",
            "in a container: --shm-size 8g",
        )


def _clocks(found: Found) -> Iterator[Finding]:
    for skew in found.skews:
        if abs(skew.seconds) - skew.uncertainty > _SKEW_S:
            yield Finding(
                "warning",
                f"clock of {found.facts[skew.rank].host}",
                f"{skew.seconds:+.3f} s from {found.facts[0].host}'s, +- {skew.uncertainty * 1e3:.1f} ms",
                f"within {_SKEW_S:g} s",
                "logs of the hosts are out of order, and from 15 minutes on S3 refuses what they sign",
                "keep the clocks with NTP, such as chrony",
            )


def _by_value(ranks: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{value} on {_ranks(each)}" for value, each in ranks.items())


def _ranks(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"rank{'s' * (len(ranks) > 1)} {shown}"

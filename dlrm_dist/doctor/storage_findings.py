"""What is amiss with the data and the run folder: out of reach, not shared, slow."""

from collections.abc import Iterator, Sequence

from dlrm_dist.doctor.disk import Transfer, mb_s
from dlrm_dist.doctor.examination import Found
from dlrm_dist.doctor.finding import Finding
from dlrm_dist.planning.cluster import Cluster

_ROW_BYTES = 160
"""Of a Criteo row: 40 columns of 4 bytes."""
_FEW_BYTES = 32 << 20
"""Data of less says nothing of the rate: most of the time goes into opening it."""
_WRITE_MB_S = 50.0
"""Of a host: a checkpoint of 10 GB takes 3 minutes then."""
_CHECKPOINT_GB = 10


def findings(found: Found, known: Cluster) -> Iterator[Finding]:
    """Of all ranks."""
    yield from _failures(found.reads, found, "the data", "that all ranks read it", "training cannot start")
    yield from _failures(found.writes, found, "the storage", "that all ranks write to it", "checkpoints fail")
    yield from _sight(found)
    yield from _slow_reads(found, known)
    yield from _slow_writes(found)


def _failures(transfers: Sequence[Transfer], found: Found, what: str, expected: str, cost: str) -> Iterator[Finding]:
    """One for each host with a rank that fails."""
    for number in range(found.hosts if transfers else 0):
        problems = [transfers[rank].problem for rank in found.of_host(number) if transfers[rank].problem]
        if problems:
            way_out = "put it where all hosts find it under the same path"
            yield Finding("broken", f"{what} on {found.name(number)}", problems[0], expected, cost, way_out)


def _sight(found: Found) -> Iterator[Finding]:
    hosts = range(found.hosts if found.sights else 0)
    blind = [number for number in hosts if not all(found.sights[rank] for rank in found.of_host(number))]
    if blind:
        names = ", ".join(found.name(number) for number in blind)
        yield Finding(
            "broken",
            f"storage {found.storage}",
            f"{names} does not see what {found.name(0)} writes there",
            "one folder that all hosts share",
            "each host keeps a part of a checkpoint, and none can be loaded",
            "name a folder on shared storage (NFS, Lustre, ...): --run.folder FOLDER",
        )


def _slow_reads(found: Found, known: Cluster) -> Iterator[Finding]:
    good = [each for each in found.reads if not each.problem]
    if (
        not good
        or len(good) < found.ranks
        or sum(each.bytes for each in good) < _FEW_BYTES * all(each.is_all for each in good)
    ):
        return
    rate, expected = mb_s(good) / found.ranks, known.value("input_gb_s") * 1e3
    if rate < expected / 2:
        yield Finding(
            "warning",
            f"reading {found.data}",
            f"{rate:,.0f} MB/s a rank",
            f"{expected:,.0f} MB/s, what a rank can decode (cluster {known.name})",
            f"at {_ROW_BYTES} bytes a row, input bounds training at {rate * 1e6 / _ROW_BYTES:,.0f} rows/s a rank",
            "keep the data on a local disk, or prepare it with stronger compression",
        )


def _slow_writes(found: Found) -> Iterator[Finding]:
    for number in range(found.hosts if found.writes else 0):
        transfers = [found.writes[rank] for rank in found.of_host(number)]
        rate = mb_s(transfers)
        if rate < _WRITE_MB_S and not any(each.problem for each in transfers):
            yield Finding(
                "warning",
                f"writing to {found.storage} from {found.name(number)}",
                f"{rate:,.1f} MB/s",
                f"{_WRITE_MB_S:g} MB/s or more",
                f"{_CHECKPOINT_GB} GB of a checkpoint take {_CHECKPOINT_GB * 1e3 / max(rate, 1e-3):,.0f} s a host",
                "use faster storage, or save less often: --checkpoint.every",
            )

"""All measurements of `dlrm-dist doctor`, one after another, on all ranks."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from dlrm_dist.data import files
from dlrm_dist.doctor import clocks, disk, host, links
from dlrm_dist.doctor.clocks import Skew
from dlrm_dist.doctor.disk import Transfer
from dlrm_dist.doctor.host import Facts
from dlrm_dist.doctor.links import Line
from dlrm_dist.doctor.speed import Speed, speed
from dlrm_dist.runtime import Session

_QUICKER = 8
"""How much less time a measurement gets with --quick."""


@dataclass(frozen=True)
class Found:
    """What was found on all ranks; lists have a place for each rank."""

    device_type: str
    backend: str
    ranks_per_host: int
    facts: list[Facts]
    speeds: list[Speed]
    lines: list[Line]
    skews: list[Skew]
    data: str | None
    reads: list[Transfer]
    """Empty if no data was named."""
    storage: Path | None
    sights: list[bool]
    """Whether the rank sees what global rank 0 wrote into the storage; empty if none was named."""
    writes: list[Transfer]
    seconds: float

    @property
    def ranks(self) -> int:
        """In all."""
        return len(self.facts)

    @property
    def hosts(self) -> int:
        """How many there are."""
        return self.ranks // self.ranks_per_host

    def of_host(self, number: int) -> range:
        """The ranks of a host."""
        return range(number * self.ranks_per_host, (number + 1) * self.ranks_per_host)

    def name(self, number: int) -> str:
        """Of a host."""
        return self.facts[number * self.ranks_per_host].host


def examine(here: Session, data: str | None, storage: Path | None, is_quick: bool) -> Found:
    """Measure everything. Collective."""
    started = time.perf_counter()
    share = 1 / _QUICKER if is_quick else 1.0
    _tell(here, "versions, cores, limits, clocks")
    facts = here.gather(host.facts(here))
    skews = clocks.skews(here)
    _tell(here, "memory and arithmetic")
    speeds = here.gather(speed(here, 1.0 * share))
    _tell(here, "links")
    lines = _lines(here, 1.2 * share)
    reads: Sequence[Transfer] = ()
    if data is not None:
        _tell(here, f"reading {files.without_secrets(data)}")
        reads = here.gather(disk.read(data, here, 3.0 * share))
    sights: Sequence[bool] = ()
    writes: Sequence[Transfer] = ()
    if storage is not None:
        _tell(here, f"writing to {storage}")
        sights = here.gather(disk.sees_the_same(storage, here))
        writes = here.gather(disk.write(storage, here, 3.0 * share))
    _tell(here, "")
    return Found(
        device_type=here.device.type,
        backend=dist.get_backend(),
        ranks_per_host=here.local_world_size,
        facts=facts,
        speeds=speeds,
        lines=lines,
        skews=skews,
        data=None if data is None else files.without_secrets(data),
        reads=[*reads],
        storage=storage,
        sights=[*sights],
        writes=[*writes],
        seconds=time.perf_counter() - started,
    )


def _lines(here: Session, lasting: float) -> list[Line]:
    return [
        line
        for scope in links.scopes(here)
        for collective in links.COLLECTIVES
        for line in links.measured(scope, collective, here, lasting)
    ]


def _tell(here: Session, what: str) -> None:
    """Say on a terminal what is being measured; nothing: wipe that out."""
    if here.is_main and sys.stderr.isatty():
        print(f"\r\033[K{what and 'measuring '}{what}", end="", file=sys.stderr, flush=True)

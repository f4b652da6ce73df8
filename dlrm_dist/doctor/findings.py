"""What is amiss: measured against what is expected, what it costs, and the way out."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from dlrm_dist.doctor.examination import Found
from dlrm_dist.planning.cluster import Cluster

_TORCH_OF_FBGEMM = {"1.6": "2.11", "1.7": "2.12", "1.8": "2.13"}


@dataclass(frozen=True)
class Finding:
    """A line."""

    level: Literal["broken", "warning"]
    what: str
    measured: str
    expected: str
    cost: str
    way_out: str

    def __str__(self) -> str:
        """In one line."""
        return f"{self.level}: {self.what}: {self.measured}; expected {self.expected}; {self.cost}; {self.way_out}"


def findings(found: Found, known: Cluster) -> list[Finding]:
    """All, what is broken first."""
    all_of_them = [*_versions(found)]
    return sorted(all_of_them, key=lambda each: each.level)


def _versions(found: Found) -> Iterator[Finding]:
    return iter(())

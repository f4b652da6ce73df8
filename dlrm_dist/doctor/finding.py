"""A finding: one line."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """What is amiss, in words."""

    level: Literal["broken", "warning"]
    what: str
    measured: str
    expected: str
    cost: str
    way_out: str

    def __str__(self) -> str:
        """In one line."""
        return f"{self.level}: {self.what}: {self.measured}; expected {self.expected}; {self.cost}; {self.way_out}"

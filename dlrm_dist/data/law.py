"""The law of synthetic ids: how many each category has, and how often each comes."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from dlrm_dist.errors import UserError

IntArray = npt.NDArray[np.int32]
CATEGORIES = tuple(f"C{i}" for i in range(1, 27))
NAMED_CARDINALITIES = {
    "planted": (
        *(40, 25, 30, 30, 50, 20, 60, 100, 40, 10_000, 3, 12, 20),
        *(8, 30, 15, 25, 30_000, 10, 40, 5, 20, 50, 12, 30, 4),
    ),
    "kaggle": (
        *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194),
        *(27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
    ),
    "mlperf": (
        *(40000000, 39060, 17295, 7424, 20265, 3, 7122, 1543, 63, 40000000, 3067956, 405282, 10),
        *(2209, 11938, 155, 4, 976, 14, 40000000, 40000000, 40000000, 590152, 12973, 108, 36),
    ),
}
"""Ids of each category: small ones that a short training can learn, those of Criteo's Kaggle log, and MLPerf's."""
_CARRIERS, _LEARNABLE = 9, 50
"""Categories that carry the signal; the others are noise that a model must learn to ignore. With few ids, most pairs of
ids are seen often in `DEFAULT_ROWS` rows."""
_MOST_IDS = 1 << 31


@dataclass(frozen=True)
class Law:
    """How the ids are drawn: so many of each category, id k with a probability of about (k + 1)^-exponent."""

    cardinalities: tuple[int, ...] = NAMED_CARDINALITIES["planted"]
    exponent: float = 1.0

    def __post_init__(self) -> None:
        if len(self.cardinalities) != len(CATEGORIES) or not all(0 < n < _MOST_IDS for n in self.cardinalities):
            raise UserError(
                f"cardinalities: {len(self.cardinalities)} numbers; allowed: {', '.join(NAMED_CARDINALITIES)}, or "
                f"{len(CATEGORIES)} numbers from 1 to {_MOST_IDS - 1}; choose one"
            )
        if not 0 <= self.exponent <= 4:
            raise UserError(f"exponent: {self.exponent} is impossible; allowed: 0 (all alike) to 4; choose one")

    @property
    def is_planted(self) -> bool:
        """Whether it is the default."""
        return self == Law()

    @cached_property
    def carriers(self) -> tuple[int, ...]:
        """The categories with a signal: in pairs of two each the first six, the others by themselves."""
        if self.is_planted:
            return tuple(range(_CARRIERS))
        near = np.abs(np.log(np.array(self.cardinalities) / _LEARNABLE))
        return tuple(np.argsort(near, kind="stable")[:_CARRIERS].tolist())

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Categories with pairwise effects."""
        return tuple(zip(self.carriers[0:6:2], self.carriers[1:6:2], strict=True))

    @property
    def singles(self) -> tuple[int, ...]:
        """Categories with an effect per id."""
        return self.carriers[6:]

    def shares(self, category: int, most: int | None = None) -> npt.NDArray[np.float64]:
        """The probability of each id of a category, or of its `most` first ones, float64 [ids]."""
        n = self.cardinalities[category]
        ids = n if most is None else min(n, most)
        if self.exponent == 1:
            return np.log1p(1 / np.arange(1, ids + 1)) / np.log(n + 1)
        edges = np.append(np.arange(1, ids + 2), n + 1) ** (1 - self.exponent)
        return np.diff(edges[:-1]) / (edges[-1] - 1)

    def draw(self, rng: np.random.Generator, rows: int) -> IntArray:
        """Ids int32 (26 x rows), -1 for missing: with u uniform in [0, 1), the floor of F^-1(u) for F on [1, n + 1)."""
        uniform = rng.random((len(CATEGORIES), rows), np.float32 if self.is_planted else np.float64)
        sizes = np.array(self.cardinalities, np.int64)[:, None]
        if self.exponent == 1:
            uniform *= np.log(sizes + 1).astype(uniform.dtype)
            np.exp(uniform, out=uniform)
        else:
            uniform *= (sizes + 1.0) ** (1 - self.exponent) - 1
            np.log1p(uniform, out=uniform)
            uniform /= 1 - self.exponent
            np.exp(uniform, out=uniform)
        np.minimum(uniform, sizes.astype(uniform.dtype), out=uniform)  # it may be rounded to n + 1, 2^31 at most
        ids = uniform.astype(np.int32) - 1
        gaps = np.where(sizes >= 10_000, 0.9, 0.02).astype(np.float32) if self.is_planted else np.float32(0.02)
        np.copyto(ids, -1, where=rng.random(ids.shape, np.float32) < gaps)
        return ids

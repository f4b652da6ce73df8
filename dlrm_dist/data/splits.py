"""Which lines of the sources are training, validation and test rows."""

from fractions import Fraction

import numpy as np
import numpy.typing as npt

from dlrm_dist.errors import UserError

SPLITS = ("train", "valid", "test")
_KAGGLE_CHUNKS = 7
RANDOM = {"bars_x1": (0.7, 0.2, 0.1), "bars_x4": (0.8, 0.1, 0.1)}
"""Splits drawn at random, a line at a time, in the proportions of BARS's Criteo_x1 and Criteo_x4."""
ALLOWED = "none, kaggle, day, bars_x1, bars_x4, or three fractions"
_DRAW_LINES = 1 << 20


def split_lines(counted: dict[str, list[int]], split: str, seed: int, way_out: str = "more sources") -> dict[str, int]:
    """Lines of each split that the dataset will have, in file order; `counted` has those of each file given for each.

    `way_out` is what to give where a split would be empty.

    Raises:
        UserError: `split` is unknown, or a split would be empty.
    """
    rows = {name: sum(counts) for name, counts in counted.items()}
    if split == "none":
        sizes = {name: count for name, count in rows.items() if count}
    elif split == "kaggle":  # as in the DLRM repository, where test comes before valid; both as np.array_split cuts
        each = rows["train"] // _KAGGLE_CHUNKS  # rows that do not divide evenly go to the first chunks
        sizes = {"train": rows["train"] - each, "test": each - each // 2, "valid": each // 2}
    elif split == "day":
        last = counted["train"][-1]
        sizes = {"train": rows["train"] - last, "valid": last - last // 2, "test": last // 2}
    elif split in RANDOM:
        sizes = _drawn_lines(rows["train"], split, seed)
    else:
        shares = _fractions(split)
        ends = [int(rows["train"] * sum(shares[:count])) for count in range(len(SPLITS) + 1)]
        sizes = {name: ends[i + 1] - ends[i] for i, name in enumerate(SPLITS) if shares[i]}
    for name in ("train", *sizes):
        if not sizes.get(name):
            raise UserError(
                f"split {name}: has no rows, of {sum(rows.values())} in all in {len(counted['train'])} files; allowed: "
                f"one or more in each split that {split!r} makes; give {way_out}, or another split: {ALLOWED}"
            )
    return sizes


def _fractions(split: str) -> list[Fraction]:
    try:
        shares = [Fraction(share.strip()) for share in split.split(",")]
    except (ValueError, ZeroDivisionError):
        shares = []
    if len(shares) != len(SPLITS) or min(shares) < 0 or sum(shares) != 1:
        raise UserError(
            f"split: {split!r}; allowed: {ALLOWED} for train, valid and test with the sum 1; write for example "
            "0.8,0.1,0.1"
        )
    return shares


def uniforms(key: list[int], first: int, count: int) -> npt.NDArray[np.float64]:
    """Numbers `first` to `first + count` of the random sequence in [0, 1) that `key` names: one 64-bit draw each."""
    bits = np.random.PCG64(key)
    return np.random.Generator(bits.advance(first)).random(count)


def drawn(split: str, seed: int, first: int, lines: int) -> npt.NDArray[np.int64]:
    """The splits of the lines from `first` on by their place in `SPLITS`, drawn at random, int64 [lines].

    They are a function of the seed and the line's number alone.
    """
    edges = np.cumsum(RANDOM[split])[:-1]
    return np.searchsorted(edges, uniforms([seed, 2], first, lines), side="right")


def _drawn_lines(lines: int, split: str, seed: int) -> dict[str, int]:
    counts = np.zeros(len(SPLITS), np.int64)
    for start in range(0, lines, _DRAW_LINES):
        counts += np.bincount(drawn(split, seed, start, min(_DRAW_LINES, lines - start)), minlength=len(SPLITS))
    return dict(zip(SPLITS, counts.tolist(), strict=True))

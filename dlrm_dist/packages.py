"""Which versions of packages are installed, and which of them belong together. Standard library only."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

TORCH_OF_FBGEMM = {"1.6": "2.11", "1.7": "2.12", "1.8": "2.13"}
"""fbgemm_gpu is compiled against one torch; with another one its import fails with an undefined symbol."""
FBGEMM = ("fbgemm-gpu-cpu", "fbgemm-gpu")
"""The packages that bring fbgemm_gpu; where the first is, the second is an empty stand-in."""


def installed(names: Iterable[str]) -> dict[str, str]:
    """The versions by name, without the packages that are not there: such as one of fbgemm's two."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def fbgemm_version() -> str:
    """That of fbgemm_gpu.

    Raises:
        PackageNotFoundError: it is not installed.
    """
    found = installed(FBGEMM)
    return next((found[name] for name in FBGEMM if name in found), None) or version(FBGEMM[-1])


def mismatch(torch: str, fbgemm: str) -> str | None:
    """Returns why this pair of versions does not work together, in words; None if it does."""
    torch_series, fbgemm_series = (".".join(each.split(".")[:2]) for each in (torch, fbgemm))
    if TORCH_OF_FBGEMM.get(fbgemm_series) == torch_series:
        return None
    pairs = ", ".join(f"fbgemm {key} with torch {value}" for key, value in TORCH_OF_FBGEMM.items())
    return f"fbgemm_gpu {fbgemm} and torch {torch} do not belong together; pairs that do: {pairs}"

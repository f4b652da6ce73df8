"""What the benchmarks share: repeats and their medians, the machine, versions and commit, a table and `--json`."""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from dlrm_dist import cores
from dlrm_dist.packages import installed

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("torch", "torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu", "pyarrow", "numpy")
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "asimd", "sve")


def parser(description: str | None, repeats: int) -> argparse.ArgumentParser:
    """A parser with what every benchmark has: `--repeats`, `--json`."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--repeats", type=int, default=repeats)
    made.add_argument("--json", action="store_true", help="print everything as JSON instead of tables")
    return made


def interleaved(ways: Mapping[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
    """What each way gives, `repeats` times, in turns: what else the machine does then meets all ways alike."""
    found: dict[str, list[T]] = {name: [] for name in ways}
    for name in tqdm([*ways] * repeats, disable=None):
        found[name].append(ways[name]())
    return found


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def summary(values: Iterable[float]) -> dict[str, float]:
    """Median, least and most."""
    found = sorted(values)
    return {"median": statistics.median(found), "min": found[0], "max": found[-1]}


def peak_mib() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def environment() -> dict[str, Any]:
    """Command, machine, versions and commit: what it takes to compare a figure with another."""
    return {
        "command": " ".join(["python", os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]]),
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
    }


def machine() -> dict[str, Any]:
    """Processor, cores this process may use, memory, the instructions that matter here, and GPUs."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = facts.get("flags", facts.get("Features", "")).split()
    return {
        "processor": facts.get("model name", platform.machine()),
        "model": facts.get("model", ""),  # hypervisors call many processors by one name
        "cores": cores.usable(),
        "memory_GiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "instructions": [name for name in _INSTRUCTIONS if name in flags],
        "gpus": _gpus(),
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide speed."""
    return {"python": platform.python_version(), **installed(_PACKAGES)}


def commit() -> str:
    """The commit of the sources, with a `+` when files differ from it; empty outside a clone."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip()


def report(result: dict[str, Any], rows: Sequence[Mapping[str, Any]], as_json: bool, note: str = "") -> None:
    """Print `result`, and `rows` with it as a table; as JSON, with the environment, when asked.

    Args:
        result: figures by name; `rows` and the environment go into its JSON too.
        rows: of the table, all with the same keys, which become its header.
        as_json: JSON instead.
        note: a line below the table.
    """
    where = environment()
    if as_json:
        print(json.dumps({**result, "rows": rows, "environment": where}, indent=1))
        return
    print(table(rows))
    print("\n".join(["", note] if note else [""]))
    print(f"`{where['command']}` at {where['commit']}")
    print(", ".join(f"{key} {_text(value)}" for key, value in (where["machine"] | where["versions"]).items() if value))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([_text(value) for value in row.values()] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _text(value: Any) -> str:
    """A value for a reader: numbers to three digits at least."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def _gpus() -> list[str]:
    import torch  # here, for some benchmarks choose their cores before any library counts them

    return [torch.cuda.get_device_name(each) for each in range(torch.cuda.device_count())]

"""What `dlrm-dist doctor` prints."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dlrm_dist.doctor import links
from dlrm_dist.doctor.disk import Transfer
from dlrm_dist.doctor.examination import Found
from dlrm_dist.doctor.findings import Finding
from dlrm_dist.doctor.links import Line


def text(found: Found, findings: Sequence[Finding]) -> str:
    """For a reader."""
    one = found.ranks == 1
    hosts = f"{found.hosts} host{'s' * (found.hosts > 1)}"
    head = f"{found.ranks} rank{'s' * (not one)} on {hosts}, {found.facts[0].device}, {found.backend}"
    parts = [[f"{head}; {found.seconds:.0f} s"], _versions(found), _hosts(found), _links(found), _findings(findings)]
    return "\n\n".join("\n".join(part) for part in parts if part)


def as_json(found: Found, findings: Sequence[Finding]) -> str:
    """For a program."""
    figures = {**asdict(found), "storage": str(found.storage) if found.storage else None}
    figures["lines"] = [{**asdict(line), "gb_s": line.gb_s} for line in found.lines]
    figures |= {"ranks": found.ranks, "hosts": found.hosts, "link_gb_s": links.rate(found.lines, links.BETWEEN)}
    if figures["link_gb_s"]:
        figures["link_gb_s"] *= found.ranks_per_host
    figures["findings"] = [{**asdict(each), "text": str(each)} for each in findings]
    return json.dumps(figures, indent=1)


def _versions(found: Found) -> list[str]:
    shown = dict.fromkeys(", ".join(f"{name} {at}" for name, at in each.versions.items()) for each in found.facts)
    return [*shown]


def _hosts(found: Found) -> list[str]:
    rows = [_host(found, number) for number in range(found.hosts)]
    return _table([key for key in rows[0] if any(row[key] for row in rows)], rows)


def _host(found: Found, number: int) -> dict[str, str]:
    ranks = found.of_host(number)
    facts = [found.facts[rank] for rank in ranks]
    first, speeds = facts[0], [found.speeds[rank] for rank in ranks]
    cores = {core for each in facts for core in each.cores}
    skew = next((each for each in found.skews if each.rank == ranks[0]), None)
    on_gpu = found.device_type == "cuda"
    return {
        "host": first.host,
        "ranks": _span(ranks),
        "cores": str(len(cores)),
        "threads": str(sum(each.threads for each in facts)),
        "GiB": f"{first.memory_gib:.1f}",
        "free": f"{first.available_gib:.1f}",
        "/dev/shm": "none" if first.shm_gib is None else f"{first.shm_gib:.1f}",
        "files": f"{first.open_files:,}",
        "memory GB/s": _figure(sum(each.memory_gb_s for each in speeds)),
        "HBM GB/s": _figure(min(each.device_gb_s for each in speeds)) if on_gpu else "",
        "to GPU GB/s": _figure(min(each.host_link_gb_s for each in speeds)) if on_gpu else "",
        "fp32 TFLOP/s": _figure(sum(each.fp32_tflop_s for each in speeds)),
        "bf16": _figure(sum(each.bf16_tflop_s for each in speeds)),
        "read MB/s": _transfer(found.reads, ranks),
        "write MB/s": _transfer(found.writes, ranks),
        "clock": f"{skew.seconds * 1e3:+.1f} +- {skew.uncertainty * 1e3:.1f} ms" if skew else "",
    }


def _transfer(all_ranks: Sequence[Transfer], ranks: range) -> str:
    """MB/s of a host."""
    found = [all_ranks[rank] for rank in ranks if all_ranks]
    if not found:
        return ""
    return "fails" if any(each.problem for each in found) else f"{rate_mb_s(found):,.0f}"


def rate_mb_s(found: Sequence[Transfer]) -> float:
    """Of ranks that moved bytes at the same time."""
    return sum(each.bytes for each in found) / max(*(each.seconds for each in found), 1e-9) / 1e6


def _links(found: Found) -> list[str]:
    return (
        _table(
            ["link", "collective", "message", "time", "GB/s a rank", "of a host", "Gbit/s"],
            [_link(line, found.ranks_per_host) for line in found.lines],
        )
        if found.lines
        else []
    )


def _link(line: Line, ranks_per_host: int) -> dict[str, str]:
    of_host = line.gb_s * ranks_per_host if line.scope == links.BETWEEN else 0.0
    return {
        "link": line.scope,
        "collective": line.collective,
        "message": _size(line.bytes),
        "time": _time(line.seconds),
        "GB/s a rank": _figure(line.gb_s),
        "of a host": _figure(of_host) if of_host else "",
        "Gbit/s": _figure(of_host * 8) if of_host else "",
    }


def _findings(findings: Sequence[Finding]) -> list[str]:
    return [str(each) for each in findings] or ["nothing amiss"]


def _table(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[str]:
    """Aligned: what begins with a letter to the left, numbers to the right."""
    lines = [list(columns), *([row[key] for key in columns] for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    is_number = [
        any(line[place][:1].isdigit() or line[place][:1] in "+-" for line in lines[1:] if line[place])
        for place in range(len(columns))
    ]
    return [
        "  ".join(
            word.rjust(width) if right else word.ljust(width)
            for word, width, right in zip(line, widths, is_number, strict=True)
        ).rstrip()
        for line in lines
    ]


def _span(ranks: range) -> str:
    return f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]}-{ranks[-1]}"


def _figure(value: float) -> str:
    """Three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _size(count: int) -> str:
    for unit, size in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.0f} {unit}"
    return f"{count} B"


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"

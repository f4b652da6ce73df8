"""What `dlrm-dist doctor` prints."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from dlrm_dist.doctor import links
from dlrm_dist.doctor.disk import Transfer, mb_s
from dlrm_dist.doctor.examination import Found
from dlrm_dist.doctor.finding import Finding
from dlrm_dist.doctor.host import cores_of
from dlrm_dist.doctor.links import Line

_TELLING = 1024
"""Bytes of a message from which on its rate says something."""


def text(found: Found, findings: Sequence[Finding]) -> str:
    """For a reader."""
    one = found.ranks == 1
    hosts = f"{found.hosts} host{'s' * (found.hosts > 1)}"
    head = f"{found.ranks} rank{'s' * (not one)} on {hosts}, {found.facts[0].device}, {found.backend}"
    parts = [[f"{head}; {found.seconds:.0f} s"], _versions(found), _hosts(found), _speeds(found)]
    parts += [_links(found, scope) for scope in (links.INSIDE, links.BETWEEN, links.ALL)]
    parts.append(_findings(findings))
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
    """A line for each set of versions; those that differ have a finding that says on which ranks."""
    shown = [*dict.fromkeys(", ".join(f"{name} {at}" for name, at in each.versions.items()) for each in found.facts)]
    return [f"{shown[0]}, the same on all ranks"] if len(shown) == 1 < found.ranks else shown


def _hosts(found: Found) -> list[str]:
    return _table([_host(found, number) for number in range(found.hosts)])


def _host(found: Found, number: int) -> dict[str, str]:
    ranks = found.of_host(number)
    facts = [found.facts[rank] for rank in ranks]
    first, skew = facts[0], next((each for each in found.skews if each.rank == ranks[0]), None)
    return {
        "host": first.host,
        "ranks": _span(ranks),
        "cores": str(cores_of(facts)),
        "threads": str(sum(each.threads for each in facts)),
        "memory GiB": f"{first.memory_gib:.1f}",
        "free": f"{first.available_gib:.1f}",
        "/dev/shm GiB": "none" if first.shm_gib is None else f"{first.shm_gib:.1f}",
        "open files": f"{first.open_files:,}",
        "clock": f"{skew.seconds * 1e3:+.1f} +- {skew.uncertainty * 1e3:.1f} ms" if skew else "",
    }


def _speeds(found: Found) -> list[str]:
    rows = [_speed(found, number) for number in range(found.hosts)]
    return ["all ranks of a host together:", *_table(rows)]


def _speed(found: Found, number: int) -> dict[str, str]:
    ranks, on_gpu = found.of_host(number), found.device_type == "cuda"
    speeds = [found.speeds[rank] for rank in ranks]
    return {
        "host": found.name(number),
        "copy GB/s": _figure(sum(each.memory_gb_s for each in speeds)),
        "in HBM": _figure(sum(each.device_gb_s for each in speeds)) if on_gpu else "",
        "to GPUs": _figure(sum(each.host_link_gb_s for each in speeds)) if on_gpu else "",
        "fp32 TFLOP/s": _figure(sum(each.fp32_tflop_s for each in speeds)),
        "bf16": _figure(sum(each.bf16_tflop_s for each in speeds)),
        "read MB/s": _transfer(found.reads, ranks),
        "write MB/s": _transfer(found.writes, ranks),
    }


def _transfer(all_ranks: Sequence[Transfer], ranks: range) -> str:
    """MB/s of a host."""
    found = [all_ranks[rank] for rank in ranks if all_ranks]
    if not found:
        return ""
    if any(each.problem for each in found):
        return "fails"
    cached = [each.cached for each in found if each.cached is not None]
    share = sum(cached) / len(cached) if cached else 0.0
    return f"{mb_s(found):,.0f}" + (f" ({share:.0%} from memory)" if share else "")


def _links(found: Found, scope: str) -> list[str]:
    """A table of the scope's messages, below what comes of it."""
    lines = [line for line in found.lines if line.scope == scope]
    if not lines:
        return []
    sizes = dict.fromkeys(line.bytes for line in lines)
    rows = [_sized([line for line in lines if line.bytes == size]) for size in sizes]
    return [_link_in_short(found, scope), *_table(rows)]


def _link_in_short(found: Found, scope: str) -> str:
    rate, least = links.rate(found.lines, scope) or 0.0, links.latency(found.lines, scope) or 0.0
    in_all = ""
    if scope == links.BETWEEN:
        of_host = rate * found.ranks_per_host
        in_all = f", {_figure(of_host * 1e3)} MB/s a host = {_figure(of_host * 8)} Gbit/s each way"
    return f"{scope}: {_figure(rate * 1e3)} MB/s a rank{in_all}; latency {_time(least)}"


def _sized(lines: Sequence[Line]) -> dict[str, str]:
    row = {"message": _size(lines[0].bytes)}
    for name in links.COLLECTIVES:
        line = next((each for each in lines if each.collective == name), None)
        row[name] = _time(line.seconds) if line else "-"
        row["MB/s" + " " * links.COLLECTIVES.index(name)] = (
            _figure(line.gb_s * 1e3) if line and line.bytes >= _TELLING else "-"
        )
    return row


def _findings(findings: Sequence[Finding]) -> list[str]:
    return [str(each) for each in findings] or ["nothing amiss"]


def _table(rows: Sequence[dict[str, str]]) -> list[str]:
    """Names to the left, all else to the right; without columns that are empty."""
    keys = [key for key in rows[0] if any(row[key] for row in rows)]
    lines = [[key.strip() for key in keys], *([row[key] for key in keys] for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(keys))]
    return ["  ".join(map(_padded, keys, line, widths)).rstrip() for line in lines]


def _padded(key: str, word: str, width: int) -> str:
    return word.ljust(width) if key == "host" else word.rjust(width)


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

"""A cluster file of what was measured: `dlrm-dist plan make --cluster FILE` and `sharding.cluster` read it."""

import datetime
import json
from dataclasses import dataclass
from pathlib import Path

from dlrm_dist.doctor import links
from dlrm_dist.doctor.examination import Found
from dlrm_dist.doctor.host import cores_of
from dlrm_dist.planning.cluster import Cluster, Constant, Constants, cluster_of_device, load_cluster


@dataclass(frozen=True)
class Measured:
    """Values by the name of the constant, and what to say of where they come from."""

    values: dict[str, float]
    notes: dict[str, str]


def make(found: Found, name: str, command: str) -> Cluster:
    """The machines as measured; what cannot be measured is that of the known cluster of the device.

    A link's constant is what a collective reached, so that `link_efficiency` is 1.
    """
    known = known_cluster(found)
    here = measured(found)
    where = f"{command}, {machine(found)}, {datetime.date.today().isoformat()}"
    constants = {}
    for key in Constants.model_fields:
        if key in here.values:
            source = f"{where}: {here.notes[key]}"
            constants[key] = Constant(value=_rounded(here.values[key]), kind="measured", source=source)
        else:
            constants[key] = _known(known, key)
    return Cluster(
        name=name,
        device=known.device,
        gpu_names=known.gpu_names,
        hosts=found.hosts,
        devices_per_host=found.ranks_per_host,
        constants=Constants(**constants),
    )


def known_cluster(found: Found) -> Cluster:
    """The known cluster of the device; an h100's for a GPU that no file knows, as a run plans for it."""
    return cluster_of_device(found.device_type, found.facts[0].device) or load_cluster("h100")


def machine(found: Found) -> str:
    """The devices in words."""
    cores = cores_of([found.facts[rank] for rank in found.of_host(0)])
    hosts = f"{found.hosts} host{'s' * (found.hosts > 1)} of {cores} cores"
    return f"{found.ranks} ranks on {hosts}, {found.facts[0].device}"


def measured(found: Found) -> Measured:
    """What stands for a constant; the slowest rank's, for a step waits for it."""
    facts, speeds, on_gpu = found.facts, found.speeds, found.device_type == "cuda"
    values = {
        "ddr_gib": min(each.memory_gib for each in facts) / found.ranks_per_host,
        "ddr_gb_s": min(each.memory_gb_s for each in speeds),
        "host_link_gb_s": min(each.host_link_gb_s if on_gpu else each.memory_gb_s for each in speeds),
        "fp32_tflop_s": min(each.fp32_tflop_s for each in speeds),
        "bf16_tflop_s": min(each.bf16_tflop_s for each in speeds),
        "link_efficiency": 1.0,
    }
    notes = {
        "ddr_gib": "memory of the host by its ranks",
        "ddr_gb_s": "copy, all ranks at once, the slowest",
        "host_link_gb_s": "copy from pinned memory" if on_gpu else "the same memory",
        "fp32_tflop_s": "product of square matrices",
        "bf16_tflop_s": "the same",
        "link_efficiency": "in the figures of the links already",
    }
    if on_gpu:
        values["hbm_gib"] = min(each.device_memory_gib for each in facts)
        notes["hbm_gib"] = "memory of the device"
    for scope, link in ((links.INSIDE, "intra_host"), (links.BETWEEN, "inter_host")):
        rate, latency = links.rate(found.lines, scope), links.latency(found.lines, scope)
        if rate and latency:
            values |= {f"{link}_gb_s": rate, f"{link}_latency_us": latency * 1e6}
            notes[f"{link}_gb_s"] = f"{found.backend}, all ranks at once, sent by a rank"
            notes[f"{link}_latency_us"] = f"{found.backend} all-to-all of a few bytes"
    return Measured(values, notes)


def text(cluster: Cluster) -> str:
    """The file's content, in the form of the files in sharding_plans/clusters/."""
    sizes = json.dumps([*cluster.gpu_names])
    lines = [
        "# Measured by dlrm-dist doctor. GB is 10^9 bytes, GiB is 2^30.",
        "",
        f"name = {_quoted(cluster.name)}",
        f"device = {_quoted(cluster.device)}",
        *([f"gpu_names = {sizes}"] if cluster.gpu_names else []),
        f"hosts = {cluster.hosts}",
        f"devices_per_host = {cluster.devices_per_host}",
        "",
        "[constants]",
    ]
    for name, constant in cluster.constants:
        value = f"value = {constant.value:g}" if constant.value < 1e5 else f"value = {constant.value:.0f}"
        lines.append(f'{name} = {{ {value}, kind = "{constant.kind}", source = {_quoted(constant.source)} }}')
    return "\n".join(lines) + "\n"


def write(cluster: Cluster, path: Path) -> None:
    """Write the file; under a temporary name first."""
    part = path.with_name(path.name + ".part")
    part.write_text(text(cluster))
    part.rename(path)


def _known(known: Cluster, key: str) -> Constant:
    """The known cluster's; a link's with its efficiency in it, as that of the file is 1."""
    constant: Constant = getattr(known.constants, key)
    efficiency = known.value("link_efficiency")
    if key not in ("intra_host_gb_s", "inter_host_gb_s") or efficiency == 1:
        return constant.model_copy(update={"source": f"cluster {known.name}: {constant.source}"})
    source = f"cluster {known.name}: {constant.source}; times {efficiency:g}, the share that a collective reaches"
    return Constant(value=_rounded(constant.value * efficiency), kind=constant.kind, source=source)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)

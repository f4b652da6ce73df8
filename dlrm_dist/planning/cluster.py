"""A cluster as numbers: what the planner and the prediction of a step know of the machines.

Each constant says whether it was measured, published or assumed, and where it comes from. Clusters that the project
knows are files in sharding_plans/clusters/, one for each kind of machine; `h100:16x8` means 16 hosts of `h100.toml`
with 8 devices each.
"""

import difflib
import re
import tomllib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dlrm_dist.errors import UserError, first_problem

PLANS = Path(__file__).resolve().parents[2] / "sharding_plans"
"""The folder of clusters, constraints and plans that come with the project."""
GIB = 1 << 30
HERE = "this machine"
"""How the source of a constant begins that was measured at the start of a run, and is in no file."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Constant(_Strict):
    """A number and where it comes from."""

    value: float = Field(ge=0)
    kind: Literal["measured", "published", "assumed"]
    source: str = Field(min_length=3)


class Constants(_Strict):
    """What one device, its share of a host, and its links can do. GB is 10^9 bytes, GiB is 2^30."""

    hbm_gib: Constant
    """Memory of a device (0: it has none of its own, as a CPU rank)."""
    ddr_gib: Constant
    """Host memory, a device's share."""
    reserved: Constant
    """Share of that memory kept from the tables: activations, the dense part, communication buffers, fragmentation."""
    hbm_gb_s: Constant
    """Bandwidth of the device's memory."""
    ddr_gb_s: Constant
    """Bandwidth of the host's memory, a device's share."""
    host_link_gb_s: Constant
    """Host to device, one direction."""
    lookup_efficiency: Constant
    """Share of the memory bandwidth that a fused embedding lookup reaches."""
    update_multiplier: Constant
    """Time of a lookup's backward with the fused update, over the time of its forward."""
    intra_host_gb_s: Constant
    """Device to the other devices of its host, one direction."""
    inter_host_gb_s: Constant
    """Device to other hosts, one direction."""
    link_efficiency: Constant
    """Share of a link that a collective reaches."""
    intra_host_latency_us: Constant
    """Start-up time of a collective inside a host."""
    inter_host_latency_us: Constant
    """Start-up time of a collective over several hosts."""
    fp32_tflop_s: Constant
    """Dense arithmetic in fp32 (without TF32)."""
    bf16_tflop_s: Constant
    """Dense arithmetic in bf16."""
    dense_efficiency: Constant
    """Share of that arithmetic that the MLPs and the interaction reach."""
    input_gb_s: Constant
    """Bytes of batches a rank's reader can deliver."""
    step_overhead_ms: Constant
    """Time of a step that neither data nor arithmetic explains: Python, launches, synchronisation."""


class Cluster(_Strict):
    """Hosts of one kind with equal devices."""

    name: str
    device: Literal["cuda", "cpu"]
    gpu_names: tuple[str, ...] = ()
    """Words of the names under which PyTorch knows these GPUs."""
    hosts: int = Field(default=1, gt=0)
    devices_per_host: int = Field(gt=0)
    sizes: tuple[str, ...] = ()
    """Common sizes, as HOSTSxDEVICES."""
    constants: Constants

    @model_validator(mode="after")
    def _is_usable(self) -> Self:
        for name in Constants.model_fields:
            if self.value(name) == 0 and name not in _MAY_BE_ZERO:
                raise ValueError(f"{name} must be above 0")
        return self

    @property
    def world_size(self) -> int:
        """Devices in all: one rank each."""
        return self.hosts * self.devices_per_host

    @property
    def size(self) -> str:
        """As HOSTSxDEVICES."""
        return f"{self.hosts}x{self.devices_per_host}"

    def value(self, name: str) -> float:
        """The number of a constant."""
        return float(getattr(self.constants, name).value)

    def memory_bytes(self) -> tuple[int, int]:
        """Bytes of HBM and of DDR that tables may fill on one device."""
        kept = 1 - self.value("reserved")
        return int(self.value("hbm_gib") * GIB * kept), int(self.value("ddr_gib") * GIB * kept)

    def resized(self, hosts: int, devices_per_host: int) -> Self:
        """The same machines in another number."""
        return self.model_copy(update={"hosts": hosts, "devices_per_host": devices_per_host})

    def with_constant(self, name: str, value: float, source: str) -> Self:
        """The same with one constant measured here."""
        constant = Constant(value=value, kind="measured", source=source)
        return self.model_copy(update={"constants": self.constants.model_copy(update={name: constant})})


_MAY_BE_ZERO = ("hbm_gib", "ddr_gib", "hbm_gb_s", "reserved", "intra_host_latency_us", "inter_host_latency_us")
_SIZE = re.compile(r"(?P<hosts>[1-9]\d*)x(?P<devices>[1-9]\d*)")


def known_clusters() -> list[str]:
    """Names of the clusters that come with the project."""
    return sorted(path.stem for path in (PLANS / "clusters").glob("*.toml"))


def load_cluster(text: str) -> Cluster:
    """The cluster `NAME`, `NAME:HOSTSxDEVICES`, `FILE.toml` or `FILE.toml:HOSTSxDEVICES`.

    Raises:
        UserError: there is none of that name; a file that cannot be read or says something impossible; a bad size.
    """
    name, colon, size = text.rpartition(":") if ":" in text else (text, "", "")
    cluster = _read(name)
    if not colon:
        return cluster
    match = _SIZE.fullmatch(size)
    if not match:
        raise UserError(f"cluster {text}: {size!r} is no size; write hosts x devices, such as {name}:2x8")
    hosts, devices = int(match["hosts"]), int(match["devices"])
    if devices > cluster.devices_per_host and cluster.device == "cuda":
        raise UserError(
            f"cluster {text}: a host of {cluster.name} has {cluster.devices_per_host} devices, not {devices}; "
            f"use at most {hosts}x{cluster.devices_per_host}"
        )
    return cluster.resized(hosts, devices)


def cluster_of_device(device_type: str, gpu_name: str) -> Cluster | None:
    """The known cluster of a device, by the name PyTorch gives the GPU; None if the GPU is unknown."""
    if device_type == "cpu":
        return load_cluster("cpu")
    clusters = [load_cluster(name) for name in known_clusters()]
    return next((each for each in clusters if set(each.gpu_names) & set(re.split(r"[\s-]", gpu_name))), None)


def _read(name: str) -> Cluster:
    path = Path(name)
    if path.suffix != ".toml":
        path = PLANS / "clusters" / f"{name}.toml"
        if not path.is_file():
            near = difflib.get_close_matches(name, known_clusters(), n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"no cluster {name!r}: {hint}known are {', '.join(known_clusters())}, or name a .toml file")
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text())
        return Cluster(**values)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; known are {', '.join(known_clusters())}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, TypeError) as error:
        raise UserError(f"{path}: is not valid TOML: {error}") from None
    except ValidationError as error:
        raise UserError(f"{path}: {first_problem(error)}; see sharding_plans/clusters/") from None

"""What a job asks its scheduler for: how many hosts, and the GPUs, cores and memory of each.

A device and its share of a host are described by a cluster (sharding_plans/clusters/): that of `--cluster`, of the
plan, or of the config, in this order. What none of them says is the user's to say, but on this machine.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from torchx import specs

from dlrm_dist import cores
from dlrm_dist.config import Config
from dlrm_dist.errors import UserError
from dlrm_dist.planning import plan_file
from dlrm_dist.planning.cluster import Cluster, known_clusters, load_cluster
from launch.options import Options
from launch.submission import Place
from launch.torchrun import Size, parse_size

CORES_PER_GPU = 8
"""Four decode a GPU's batches (clusters say 2 GB/s, a core 0.6), the others are the main thread's, autograd's, NCCL's,
gloo's and the one that writes checkpoints. Common hosts have 12 and more for each GPU."""
_MIB = 1 << 20
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Hosts:
    """What is known of a job's hosts, and which words of the user's say it."""

    origin: str = ""
    cluster: Cluster | None = None
    plan_size: Size | None = None
    """Of a plan that the job must keep to."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | Literal["auto"] = "auto"

    @classmethod
    def of_config(cls, name: str, config: Config) -> Self:
        """Hosts that a config needs, or `name` has, if it is not empty.

        Raises:
            UserError: an unknown cluster, or an unreadable plan.
        """
        sharding, runtime = config.sharding, config.runtime
        plan = plan_file.read(sharding.plan) if sharding.plan else None
        size = _size_of(plan.inputs.cluster) if plan else None
        if name:
            origin, cluster = f"--cluster {name}", load_cluster(name)
        elif plan:
            origin, cluster = f"sharding.plan {sharding.plan}", plan.inputs.cluster
        elif sharding.cluster:
            origin, cluster = f"sharding.cluster {sharding.cluster}", load_cluster(sharding.cluster)
        elif runtime.device == "cpu":
            origin, cluster = "runtime.device cpu", load_cluster("cpu")
        else:
            return cls(device=runtime.device, threads=runtime.threads)
        return cls(origin, cluster, size, runtime.device, runtime.threads)

    @classmethod
    def of_run(cls, name: str, run: Path, config: Config, place: Place) -> Self:
        """Hosts for what is done with a trained run, on any ranks: by default this machine, or such as trained it."""
        if name or place is Place.HERE or not (run / "plan.json").is_file():
            return cls.of_config(name, Config(runtime=config.runtime))
        cluster = plan_file.read(run / "plan.json").inputs.cluster
        return cls(str(run / "plan.json"), cluster, None, config.runtime.device, config.runtime.threads)

    def size(self, j: str, place: Place) -> Size:
        """The size of the job: -j, or that of the plan or the cluster.

        Raises:
            UserError: -j is none, or does not fit the plan or the hosts; nothing says it.
        """
        if not j and self.cluster is None and place is not Place.HERE:
            raise _unknown("-j, how many hosts and ranks on each")
        default = self.plan_size or (_size_of(self.cluster) if self.cluster else Size(1, 1, 2))
        if not j and place is Place.HERE and default.hosts > 1:
            raise UserError(
                f"{self.origin} is of {default.hosts} hosts, and -s local_cwd starts all ranks {place.value}; use "
                "-s slurm, kubernetes or aws_batch, or say that you want it: -j"
            )
        size = parse_size(j) if j else default
        if self.plan_size and (size.hosts, size.ranks_per_host) != (default.hosts, default.ranks_per_host):
            raise UserError(
                f"-j is {size}, but the plan is for {default}; leave -j out, or make a plan: "
                f"dlrm-dist plan make --config CONFIG --cluster NAME:{size.hosts}x{size.ranks_per_host} "
                "--out NAME.plan.json"
            )
        most = self.cluster.devices_per_host if self.cluster and self.cluster.device == "cuda" else None
        if most and size.ranks_per_host > most:
            raise UserError(
                f"-j is {size}, but a host by {self.origin} has {most} devices; use at most {most} ranks on each: "
                f"-j {-(-size.world_size // most)}x{most}"
            )
        return size

    def device_for(self, size: Size, options: Options) -> Device:
        """What the ranks will run on, elsewhere.

        Raises:
            UserError: nothing says it; there are GPUs for some of the ranks only; the words contradict each other.
        """
        gpus = named(options.h).gpu if options.h else options.gpu
        if gpus < 0:
            device = self.cluster.device if self.cluster and self.device == "auto" else self.device
        else:
            device = "cuda" if gpus else "cpu"
        if device == "auto":
            raise _unknown("whether the ranks run on GPUs")
        if gpus > 0 and gpus < size.ranks_per_host:
            raise UserError(f"{gpus} GPUs a host are too few for -j {size}: each rank needs one; use --gpu 0 for none")
        if self.device not in ("auto", device) or (self.cluster and self.cluster.device != device):
            words = f"{self.origin} is of {self.cluster.device} devices" if self.cluster else "the hosts are of others"
            raise UserError(
                f"runtime.device is {self.device}, {words}, and the job asks for {max(gpus, 0)} GPUs a host: these "
                "contradict each other; change one of --runtime.device, --cluster and --gpu"
            )
        return device

    def check_device(self, found: str) -> None:
        """Check that this machine's ranks run on what was named; a plan may be tried on other devices.

        Raises:
            UserError: they do not.
        """
        if self.plan_size is None and self.cluster is not None and self.cluster.device != found:
            raise UserError(
                f"{self.origin} is of {self.cluster.device} devices, and ranks on this machine would run on {found}; "
                "leave it out"
            )

    def resource(self, size: Size, device: Device, options: Options) -> specs.Resource:
        """What to ask for of a host elsewhere.

        Raises:
            UserError: an unknown -h; nothing says how much memory.
        """
        if options.h:
            return named(options.h)
        ranks = size.ranks_per_host
        if not options.memMB and self.cluster is None:
            raise _unknown("--memMB, the memory of a host")
        share = self.cluster.value("ddr_gib") if self.cluster else 0
        threads = self.threads if isinstance(self.threads, int) else 1
        per_rank = max(CORES_PER_GPU, threads) if device == "cuda" else threads
        return specs.Resource(
            cpu=options.cpu or ranks * per_rank,
            gpu=options.gpu if options.gpu >= 0 else ranks * (device == "cuda"),
            memMB=options.memMB or int(share * 1024) * ranks,
        )


def this_machine(num_gpus: int, options: Options) -> specs.Resource:
    """All of this machine, for so many GPUs, or what is asked for of it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _MIB
    if options.h:
        return named(options.h)
    return specs.Resource(
        cpu=options.cpu or cores.usable(),
        gpu=options.gpu if options.gpu >= 0 else num_gpus,
        memMB=options.memMB or memory,
    )


def one_process(num_cores: int, memory: int, options: Options) -> specs.Resource:
    """A host for one process of so many cores and bytes, without GPU."""
    if options.h:
        return named(options.h)
    margin_mib = 1024  # for the interpreter, and what Kubernetes takes off the request
    return specs.Resource(
        cpu=options.cpu or num_cores,
        gpu=max(options.gpu, 0),
        memMB=options.memMB or -(-memory // _MIB) + margin_mib,
    )


def named(h: str) -> specs.Resource:
    """One of torchx's named resources.

    Raises:
        UserError: there is none of that name.
    """
    try:
        return specs.resource(h=h)
    except KeyError as error:
        raise UserError(f"-h {h}: {error.args[0]}") from None


def _size_of(cluster: Cluster) -> Size:
    return Size(cluster.hosts, cluster.hosts, cluster.devices_per_host)


def _unknown(what: str) -> UserError:
    return UserError(
        f"nothing says {what}; name the hosts: --cluster NAME:HOSTSxDEVICES (known are "
        f"{', '.join(known_clusters())}, or a .toml file), or give -j, --gpu, --cpu and --memMB"
    )

"""Jobs for torchx: ranks under the project's torchrun, or one process."""

import os
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torchx.components import dist
from torchx.components.structured_arg import StructuredNameArgument
from torchx.specs import AppDef, Resource, Role, parse_mounts

from dlrm_dist import cores, runtime
from dlrm_dist.errors import UserError
from launch import rendezvous, submission, torchrun, verbs
from launch.options import Options, RankOptions
from launch.resources import Hosts, one_process, this_machine
from launch.submission import Place, Submission
from launch.torchrun import Size

PREPARE_CORES = 8
"""`prepare` uses 16 at most, and reads no faster from most disks with more than these."""
_HOST = re.compile(r"[A-Za-z0-9_.-]+")


def of_ranks(
    make: Callable[[Sequence[str], Place], verbs.Verb], arguments: Sequence[str], options: RankOptions
) -> AppDef:
    """A rank on each device of the hosts, under the project's torchrun.

    Raises:
        UserError: the job would be refused, by the scheduler or by its ranks.
    """
    call = _checked_call(options)
    verb = make(arguments, call.place)
    hosts = verb.hosts(options.cluster)
    size = hosts.size(options.j, call.place)
    resource = _check(verb, hosts, size, call.place, options)
    env = _env(call, options, options.interface)
    env.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(verb.grace_s))
    if options.log_dir:
        env["PET_LOG_DIR"] = options.log_dir
        call.check_env(env)
    app = _under_torchrun(verb.module, arguments, size, env, options, call)
    app.roles[0].resource = resource
    call.hand_on_cores(resource.cpu)
    return app


def of_prepare(arguments: Sequence[str], options: Options) -> AppDef:
    """One process that makes a dataset.

    Raises:
        UserError: the command line is wrong, or the scheduler would refuse the job.
    """
    call = _checked_call(options)
    memory = verbs.prepare_memory(arguments)
    is_here = call.place is Place.HERE
    resource = one_process(cores.usable() if is_here else PREPARE_CORES, memory, options)
    env = _env(call, options)
    env["OMP_NUM_THREADS"] = str(resource.cpu)  # Arrow's threads too: in an image it would count the host's cores
    with _mistakes():
        mounts = parse_mounts(options.mounts or [])
        named = StructuredNameArgument.parse_from(name=options.name, m="prepare")
    role = Role(
        name="prepare",
        image=options.image,
        entrypoint="dlrm-dist",
        args=["prepare", *arguments],
        env=env,
        resource=resource,
        max_retries=options.max_retries,
        mounts=mounts,
    )
    call.hand_on_cores(resource.cpu)
    return AppDef(name=named.run_name, roles=[role])


def _checked_call(options: Options) -> Submission:
    options.check()
    call = submission.at_hand()
    call.check(options.image)
    torchrun.put_on_path()
    return call


def _check(verb: verbs.Verb, hosts: Hosts, size: Size, place: Place, options: RankOptions) -> Resource:
    """Checks the verb for its ranks; returns what to ask for of a host."""
    if place is Place.HERE:
        device = runtime.choose_device(hosts.device, 0, size.ranks_per_host)
        hosts.check_device(device.type)
        verb.check(size, None)
        return this_machine(size.ranks_per_host if device.type == "cuda" else 0, options)
    name = hosts.device_for(size, options)
    verb.check(size, name)
    return hosts.resource(size, name, options)


def _env(call: Submission, options: Options, interface: str = "") -> dict[str, str]:
    """The job's variables. OMP_NUM_THREADS is torchrun's 1: ranks choose their threads when they know their cores."""
    env = dict(options.env or {})
    env |= submission.interface_env(interface, env)
    env.setdefault("OMP_NUM_THREADS", "1" if call.place is Place.IMAGE else os.environ.get("OMP_NUM_THREADS", "1"))
    call.check_env(env)
    return env


def _under_torchrun(
    module: str, arguments: Sequence[str], size: Size, env: dict[str, str], options: RankOptions, call: Submission
) -> AppDef:
    with _mistakes():
        app = dist.ddp(
            *arguments,
            m=module,
            image=options.image,
            name=options.name,
            j=str(size),
            env=env,
            max_retries=options.max_retries,
            rdzv_port=options.rdzv_port,
            mounts=options.mounts,
        )
    torchrun.choose_launcher(app, size, True, options.max_retries, _rendezvous(options, call))
    return app


def _rendezvous(options: RankOptions, call: Submission) -> str:
    """What replaces dist.ddp's options of the rendezvous: torchrun takes the last."""
    more = ""
    if options.rdzv_endpoint:
        host, _, port = options.rdzv_endpoint.rpartition(":")
        if not (_HOST.fullmatch(host) and _is_port(port)):
            raise UserError(f"--rdzv_endpoint is {options.rdzv_endpoint!r}; allowed: HOST:PORT, such as store1:29500")
        more += f" --rdzv_endpoint {options.rdzv_endpoint}"
        if call.scheduler == "slurm":  # whose requeued job keeps its id: that store still knows it, as one that failed
            more += " --rdzv_id $SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}"
    if not _is_port(str(options.rdzv_port)):
        raise UserError(f"--rdzv_port is {options.rdzv_port}; allowed: 1 to 65535")
    if options.rdzv_conf:
        rendezvous.settings(options.rdzv_conf, "--rdzv_conf")
        more += f" --rdzv_conf {shlex.quote(options.rdzv_conf)}"
    return more


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and 1 <= int(text) <= 65535


@contextmanager
def _mistakes() -> Iterator[None]:
    """What torchx says of --mounts and --name, as one line."""
    try:
        yield
    except KeyError as error:
        raise UserError(f"--mounts lacks {error.args[0]}; allowed: type=volume,src=NAME,dst=/PATH") from None
    except ValueError as error:
        raise UserError(str(error.args[0])) from None

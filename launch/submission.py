"""What torchx is about to do with a component, and whether it can: each mistake is one line before anything is sent.

torchx tells a component nothing of the scheduler, and what is right to ask for differs: the frame of its runner, which
calls the component, knows. A component that no runner calls, as in a test, is taken for one of `local_cwd`.
"""

import inspect
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from importlib.util import find_spec
from typing import Any

from torchx.runner import Runner

from dlrm_dist.errors import UserError


class Place(Enum):
    """Where a job runs, as seen from here."""

    HERE = "on this machine"
    SHARED = "elsewhere, in this folder, with this environment"
    IMAGE = "in an image, with files of its own"


PLACES = {"local_cwd": Place.HERE, "slurm": Place.SHARED, "kubernetes": Place.IMAGE, "aws_batch": Place.IMAGE}
_PACKAGES = {"kubernetes": "kubernetes", "aws_batch": "boto3"}
_INTERFACE = re.compile(r"[A-Za-z0-9_.:@-]{1,15}")
"""Names that Linux allows, of those that need no quotes."""


@dataclass(frozen=True)
class Submission:
    """A call of torchx."""

    scheduler: str
    workspace: str = ""
    cfg: Mapping[str, Any] | None = None
    is_dry: bool = True

    @property
    def place(self) -> Place:
        """Where the job runs."""
        return PLACES[self.scheduler]

    def check(self, image: str) -> None:
        """Check what torchx itself would end with a traceback, or at the cluster.

        Raises:
            UserError: the scheduler is not for this; an image, a queue, a package or a program is missing.
        """
        if self.scheduler not in PLACES:
            raise UserError(
                f"dlrm.* components ask for no hosts of -s {self.scheduler}; allowed: {', '.join(PLACES)}; with others "
                "use dist.ddp"
            )
        if self.place is Place.IMAGE:
            self._check_image(image)
        elif image:
            raise UserError(
                f"--image {image} has no effect with -s {self.scheduler}, which runs {self.place.value}; leave it out"
            )
        if self.scheduler == "slurm" and not self.is_dry and shutil.which("sbatch") is None:
            raise UserError("-s slurm needs sbatch, which is not on PATH; call torchx on a login node of the cluster")

    def _check_image(self, image: str) -> None:
        package = _PACKAGES[self.scheduler]
        if find_spec(package) is None:
            raise UserError(
                f"-s {self.scheduler} needs the Python package {package}; install it: pip install {package}"
            )
        if not image:
            raise UserError(
                f"-s {self.scheduler} runs an image, and none is given; build one from launch/Dockerfile, push it, and "
                "name it: --image REPOSITORY:TAG"
            )
        if not (self.cfg or {}).get("queue"):
            raise UserError(f"-s {self.scheduler} needs a queue; name it: -cfg queue=NAME, behind -s {self.scheduler}")
        if self.workspace and not _docker_answers():
            raise UserError(
                f"torchx would add {self.workspace} to the image with docker, which does not answer here; run the "
                'image as it is: --workspace "", before the component'
            )

    def check_env(self, env: Mapping[str, str]) -> None:
        """Check that the scheduler can hand these variables on.

        Raises:
            UserError: a comma, at which slurm's srun cuts.
        """
        cut = [name for name, value in env.items() if "," in value]
        if cut and self.scheduler == "slurm":
            raise UserError(
                f"--env {cut[0]}={env[cut[0]]}: slurm cuts variables at commas; set it in the shell instead, whose "
                "environment the job gets"
            )

    def hand_on_cores(self, num_cores: int) -> None:
        """Have slurm's srun give a task the cores that sbatch was asked for: since 22.05 it takes one otherwise.

        In this process's environment, which a job of slurm begins with.
        """
        if self.scheduler == "slurm" and not self.is_dry:
            os.environ["SRUN_CPUS_PER_TASK"] = str(num_cores)


def at_hand() -> Submission:
    """The call of torchx that this is part of."""
    found, is_dry = None, True
    frame = inspect.currentframe()
    while frame:
        if frame.f_code is Runner.dryrun_component.__code__:
            found = dict(frame.f_locals)
        is_dry = is_dry and frame.f_code is not Runner.run_component.__code__
        frame = frame.f_back
    if found is None:
        return Submission("local_cwd")
    return Submission(found["scheduler"], found["workspace"] or "", found["cfg"], is_dry)


def interface_env(interface: str, env: Mapping[str, str]) -> dict[str, str]:
    """The variables that bind NCCL and gloo to a network interface.

    Raises:
        UserError: it is no interface's name; a variable is set to something else already.
    """
    if not interface:
        return {}
    if not _INTERFACE.fullmatch(interface):
        raise UserError(f"--interface is {interface!r}; allowed: one name, such as eth0, as `ip link` shows it")
    wanted = {"NCCL_SOCKET_IFNAME": interface, "GLOO_SOCKET_IFNAME": interface}
    for name, value in wanted.items():
        if env.get(name, value) != value:
            raise UserError(
                f"--interface {interface} and --env {name}={env[name]} exclude each other; give one of them"
            )
    return wanted


def _docker_answers() -> bool:
    import docker

    try:
        docker.from_env(timeout=5).ping()
    except (docker.errors.DockerException, OSError):
        return False
    return True

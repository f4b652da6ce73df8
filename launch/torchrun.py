"""What the components share of torchrun: the size of a job, its command line, and where it is found."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from torchx.components import dist
from torchx.specs import AppDef, RetryPolicy

from dlrm_dist.errors import UserError

RETRIES_OF_FEWER = 3
"""Restarts of a job that may lose hosts, where nothing is said: without one it would end with the first lost host."""
ELASTIC = "python -m launch.elastic"
"""The project's own torchrun, whose exit code is the ranks'."""


@dataclass(frozen=True)
class Size:
    """Hosts, at least and at most, and ranks on each."""

    min_hosts: int
    hosts: int
    ranks_per_host: int

    @property
    def world_size(self) -> int:
        """Ranks in all, at most."""
        return self.hosts * self.ranks_per_host

    @property
    def fewer(self) -> list[int]:
        """The numbers of ranks that it may go on with when hosts are lost."""
        return [hosts * self.ranks_per_host for hosts in range(self.min_hosts, self.hosts)]

    def __str__(self) -> str:
        """As -j has it."""
        least = f"{self.min_hosts}:" if self.min_hosts < self.hosts else ""
        return f"{least}{self.hosts}x{self.ranks_per_host}"


def parse_size(j: str) -> Size:
    """The size that -j gives.

    Raises:
        UserError: it is none.
    """
    try:
        min_hosts, hosts, ranks_per_host, _ = dist.parse_nnodes(j)
    except ValueError:
        min_hosts = hosts = ranks_per_host = 0
    if not (1 <= min_hosts <= hosts and ranks_per_host >= 1):
        raise UserError(
            f"-j is {j!r}; allowed: 4 (ranks), 1x4 (nodes x ranks on each) or 1:2x4 (least:most nodes x ranks)"
        )
    return Size(int(min_hosts), int(hosts), int(ranks_per_host))


def choose_launcher(app: AppDef, size: Size, is_elastic: bool, max_retries: int, more: str = "") -> None:
    """Hands the retries to torchrun too, since local schedulers ignore them; `is_elastic`: under the project's own.

    A job that may lose hosts has some retries in any case; kubernetes does not start all of it anew for one pod, which
    would take the other hosts down. `more` goes behind the options that are there (the last is --role ''), of which
    torchrun takes the last.
    """
    (role,) = app.roles
    option, command = role.args
    launcher, _, rest = command.partition(" ")
    if is_elastic:
        launcher = ELASTIC
    if size.fewer:
        max_retries = max_retries or RETRIES_OF_FEWER
        role.retry_policy = RetryPolicy.REPLICA
    if max_retries:
        launcher += f" --max-restarts {max_retries}"
    role.args = [option, f"{launcher} {rest}".replace(" --role ''", f" --role ''{more}", 1)]


def put_on_path() -> None:
    """Makes the torchrun beside this torchx the first one on PATH, so that `.venv/bin/torchx` needs no activation.

    In this process's environment, which local schedulers and slurm hand on, and not in the role, which others would
    ship.
    """
    folder = str(Path(sys.executable).parent)
    paths = os.environ.get("PATH", os.defpath).split(os.pathsep)
    if Path(folder, "torchrun").exists() and paths[0] != folder:
        os.environ["PATH"] = os.pathsep.join([folder, *(path for path in paths if path != folder)])

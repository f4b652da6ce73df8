"""The options of the `dlrm` components, once for all: torchx reads them from a component's signature and help."""

import functools
import inspect
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Dict, List, Optional  # noqa: UP035  (torchx reads no others)

from torchx.specs import AppDef

from dlrm_dist.config import file_of
from dlrm_dist.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Options:
    """Of each component.

    Args:
        h: a named resource of torchx, instead of --cpu, --gpu and --memMB
        cpu: cores of a host (default: by what the job runs)
        gpu: GPUs of a host (default: by what the job runs)
        memMB: memory of a host in MB (default: by what the job runs)
        image: image to run, for kubernetes and aws_batch
        name: {experiment}/{run}, or one of them
        env: environment variables of the job (A=1,B=2)
        mounts: of an image (type=volume,src=NAME,dst=/data), as in dist.ddp
        max_retries: how often to start again what has failed
    """

    h: str = ""
    cpu: int = 0
    gpu: int = -1
    memMB: int = 0  # noqa: N815  (as torchx has it)
    image: str = ""
    name: str = "/"
    env: Optional[Dict[str, str]] = None  # noqa: UP006, UP045
    mounts: Optional[List[str]] = None  # noqa: UP006, UP045
    max_retries: int = 0

    def check(self) -> None:
        """Check the numbers.

        Raises:
            UserError: one is below what it may be.
        """
        least = {"cpu": 0, "gpu": -1, "memMB": 0, "max_retries": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise UserError(f"--{name} is {getattr(self, name)}; allowed: 0 or more")


@dataclass(frozen=True, kw_only=True)
class RankOptions(Options):
    """Of components that start ranks.

    Args:
        j: [least:]hosts x ranks on each, such as 2x8 or 1:2x8 (default: the plan's or the cluster's size)
        cluster: hosts to ask for, such as h100:2x8 (default: those of sharding.plan, else of sharding.cluster)
        interface: network interface of NCCL and gloo, such as eth0
        log_dir: folder for the output of each rank, on the hosts
        rdzv_endpoint: HOST:PORT of a store where the hosts meet (default: one on the first host)
        rdzv_port: port of the store on the first host
        rdzv_conf: settings of the rendezvous, as torchrun's --rdzv-conf
    """

    j: str = ""
    cluster: str = ""
    interface: str = ""
    log_dir: str = ""
    rdzv_endpoint: str = ""
    rdzv_port: int = 29500
    rdzv_conf: str = ""


@dataclass(frozen=True, kw_only=True)
class TrainOptions(RankOptions):
    """Of training.

    Args:
        config: TOML file of the run, as --config behind `--`
    """

    config: str = ""

    def arguments(self, others: Sequence[str]) -> list[str]:
        """Those of launch/train.py.

        Raises:
            UserError: they name a file too.
        """
        if self.config and file_of(others):
            raise UserError(f"--config {self.config} and --config {file_of(others)}: give one of them")
        return ["--config", self.config, *others] if self.config else list(others)


def component(form: type[Options], rest: str) -> Callable[[Callable[..., AppDef]], Callable[..., AppDef]]:
    """Gives a component the options of a form, and `rest` as the help of what follows them; mistakes are one line."""

    def decorate(job: Callable[..., AppDef]) -> Callable[..., AppDef]:
        @functools.wraps(job)
        def run(*arguments: str, **given: Any) -> AppDef:
            logging.disable(logging.WARNING)  # torchx shows every library's notices, FBGEMM's on each of its parts too
            try:
                return job(*arguments, **given)
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
                raise SystemExit(2) from None
            finally:
                logging.disable(logging.NOTSET)

        takes = inspect.Parameter
        signature = [takes("arguments", takes.VAR_POSITIONAL, annotation=str)]
        signature += [
            takes(each.name, takes.KEYWORD_ONLY, default=each.default, annotation=each.type) for each in fields(form)
        ]
        run.__signature__ = inspect.Signature(signature, return_annotation=AppDef)  # type: ignore[attr-defined]
        helps = "".join(_args(each) for each in reversed(form.__mro__) if issubclass(each, Options))
        run.__doc__ = f"{inspect.getdoc(job)}\n\nArgs:\n    arguments: {rest}\n{helps}"
        return run

    return decorate


def _args(form: type[Options]) -> str:
    """The lines of a form's docstring that say what its options are."""
    return (inspect.getdoc(form) or "").partition("Args:\n")[2].rstrip() + "\n"

"""What torchx would send to each scheduler, as files beside this one; `python -m tests.golden` writes them anew.

Nothing is sent and no cluster is needed: these are torchx's dry runs. Ids and users are replaced.
"""

import getpass
import os
import re
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import yaml
from torchx.runner import get_runner
from torchx.specs import finder

from tests.helpers import ROOT

FOLDER = Path(__file__).parent
IMAGE = ["--image", "example.com/dlrm-dist:1"]
PACKAGES = {"kubernetes": "kubernetes", "aws_batch": "boto3"}
_CHANGING = ("LOGLEVEL", "OMP_NUM_THREADS", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True)
class Case:
    """A command line of torchx behind `torchx run -s SCHEDULER -cfg queue=...`."""

    name: str
    scheduler: str
    component: str
    words: list[str]

    @property
    def file(self) -> Path:
        """What is expected."""
        return FOLDER / f"{self.name}.{'txt' if self.scheduler == 'slurm' else 'yaml'}"

    @property
    def lacks(self) -> str | None:
        """The package that this dry run needs and that is not installed."""
        package = PACKAGES.get(self.scheduler)
        return package if package and find_spec(package) is None else None


_PLAN = "sharding_plans/mlperf_dcnv2_1x8_h100.plan.json"
_MLPERF = ["--config", "launch/configs/mlperf_dcnv2.toml", "--data.path", "/data/criteo_1tb"]
_CPU = ["--runtime.device", "cpu"]
_VOLUME = ["--mounts", "type=volume,src=clicks,dst=/data"]
CASES = [
    Case("slurm_ddp", "slurm", "dist.ddp", ["-j", "1x2", "--cpu", "2", "-m", "launch.train", "--", *_CPU]),
    Case("slurm_train_2x8", "slurm", "dlrm.train", ["--cluster", "h100:2x8", "--interface", "eth0"]),
    Case("slurm_train_cpu", "slurm", "dlrm.train", ["-j", "1x4", "--max_retries", "2", "--", *_CPU]),
    Case("slurm_prepare", "slurm", "dlrm.prepare", ["a.txt", "data/a", "--format", "kaggle", "--memory", "8GB"]),
    Case("slurm_doctor", "slurm", "dlrm.doctor", ["--cluster", "h200"]),
    Case(
        "kubernetes_train_plan",
        "kubernetes",
        "dlrm.train",
        [*IMAGE, *_VOLUME, "--", *_MLPERF, "--sharding.plan", _PLAN],
    ),
    Case(
        "kubernetes_train_elastic",
        "kubernetes",
        "dlrm.train",
        [*IMAGE, "-j", "1:2x4", "--cluster", "l4"],
    ),
    Case("kubernetes_evaluate", "kubernetes", "dlrm.evaluate", [*IMAGE, "--cluster", "cpu:1x4", "/runs/a", "/data/a"]),
    Case(
        "aws_batch_train",
        "aws_batch",
        "dlrm.train",
        [*IMAGE, "-j", "2x8", "-h", "aws_p4d.24xlarge", "--log_dir", "/logs"],
    ),
]


def render(case: Case) -> str:
    """The request of a case, as text that is the same on every machine."""
    env = {key: value for key, value in os.environ.items() if key not in _CHANGING}
    cfg: dict[str, Any] = {} if case.scheduler == "slurm" else {"queue": "default"}
    if case.scheduler == "aws_batch":
        cfg["user"] = "someone"
    with (
        _checkout_without_runs(),
        patch.dict(os.environ, env, clear=True),
        patch.object(finder, "_components", components()),
        patch.object(getpass, "getuser", lambda: "someone"),
        get_runner() as runner,
    ):
        info = runner.dryrun_component(case.component, case.words, case.scheduler, cfg=cfg)
        text = str(info)
    if case.file.suffix == ".yaml":  # lines are broken by their length, and ids differ in theirs
        text = yaml.safe_dump(yaml.safe_load(text), width=1000)
    name = case.component.partition(".")[2]
    return re.sub(rf"\b{name}-[bcdfghjklmnpqrstvwxz][bcdfghjklmnpqrstvwxz0-9]{{8,}}\b", f"{name}-ID", text)


@contextmanager
def _checkout_without_runs() -> Iterator[None]:
    with TemporaryDirectory() as folder:
        for name in ("launch", "sharding_plans"):
            Path(folder, name).symlink_to(ROOT / name)
        with chdir(folder):
            yield


@cache
def components() -> dict[str, Any]:
    """Those of this checkout, whatever is installed."""
    modules = {"launch.components": "dist", "launch.dlrm_components": "dlrm"}
    found = [each for module, group in modules.items() for each in finder.ModuleComponentsFinder(module, group).find()]
    return {each.name: each for each in found}

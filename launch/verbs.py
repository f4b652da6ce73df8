"""What a job's own arguments say: the hosts it needs, and whether it would be refused, before anything is sent.

What the job will read is checked as far as it can be seen from here. A job in an image has files of its own: checked
are the config, plans and constraints, where they are in this checkout too, and data at absolute paths that are here.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from dlrm_dist import cli, doctor_verb, evaluate_verb, preflight
from dlrm_dist import config as config_module
from dlrm_dist.checkpoint import saved_run
from dlrm_dist.config import Config
from dlrm_dist.data import planted
from dlrm_dist.data.schema import read_info
from dlrm_dist.errors import UserError
from dlrm_dist.sections import RuntimeSection
from launch.resources import Device, Hosts
from launch.submission import Place
from launch.torchrun import Size


class Verb(Protocol):
    """What ranks are started for."""

    module: str
    """Whose `main` each rank runs."""
    grace_s: int
    """Seconds that ranks have to end when they are asked to stop."""

    def hosts(self, cluster: str) -> Hosts:
        """What it says of its hosts, or what `--cluster` says."""

    def check(self, size: Size, device: Device | None) -> None:
        """Check it for so many ranks, on a device elsewhere, or on this machine (None).

        Raises:
            UserError: the ranks would refuse it.
        """


class Training:
    """`launch/train.py`."""

    module = "launch.train"

    def __init__(self, arguments: Sequence[str], place: Place) -> None:
        self._place = place
        self._unseen: list[str] = []
        self._config = self._visible(arguments)
        self.grace_s = (self._config or Config()).runtime.grace_s

    def hosts(self, cluster: str) -> Hosts:
        """Those of the plan, else those the config names."""
        return Hosts.of_config(cluster, self._config or Config())

    def check(self, size: Size, device: Device | None) -> None:
        """As training does at its start."""
        if self._config is not None:
            self._check(self._config, size, device)
            self._note_lost_folder(self._config.run.folder)
        if self._unseen:
            _note(f"not on this machine, and so not checked: {', '.join(self._unseen)}")

    def _note_lost_folder(self, folder: Path) -> None:
        if self._place is Place.IMAGE and not folder.is_absolute():
            _note(f"run.folder {folder} is lost with the container; name one on a volume: --mounts, --run.folder")

    def _check(self, config: Config, size: Size, device: Device | None) -> None:
        if device is None:
            preflight.validate(config, size.world_size, size.ranks_per_host)
        else:
            preflight.validate_config(config, size.world_size, device)
        if size.fewer:
            preflight.validate_fewer(config, size.fewer, device or config.runtime.device)
        if self._place is Place.SHARED:
            preflight.validate_folders(config)
        path = config.data.path
        if self._place is Place.IMAGE and not (path.is_absolute() and path.exists()):
            self._unseen.append(f"data.path {path}")
        elif not planted.is_wanted(config.data):
            preflight.validate_data(config, read_info(path), size.world_size)

    def _visible(self, arguments: Sequence[str]) -> Config | None:
        """The config without the files that only the image has; None if it is one of them."""
        file = config_module.file_of(arguments)
        if self._place is Place.IMAGE and file is not None and not file.exists():
            self._unseen.append(f"--config {file}")
            return None
        config = config_module.load(arguments)
        if self._place is not Place.IMAGE:
            return config
        files = {"plan": config.sharding.plan, "constraints": config.sharding.constraints}
        absent = {key: path for key, path in files.items() if path is not None and not path.exists()}
        self._unseen += [f"sharding.{key} {path}" for key, path in absent.items()]
        sharding = config.sharding.model_copy(update=dict.fromkeys(absent))
        return config.model_copy(update={"sharding": sharding})


class Evaluation:
    """`launch/evaluate.py`."""

    module = "launch.evaluate"

    def __init__(self, arguments: Sequence[str], place: Place) -> None:
        self._place = place
        self._options = cli.parse(["evaluate", *arguments])
        paths = (self._options.folder, self._options.data)
        self._is_visible = place is not Place.IMAGE or all(path.is_absolute() and path.exists() for path in paths)
        self._config = self._find() if self._is_visible else None
        self.grace_s = (self._config.runtime if self._config else RuntimeSection()).grace_s

    def hosts(self, cluster: str) -> Hosts:
        """Such as the run was trained on."""
        if self._config is None:
            return Hosts.of_config(cluster, Config())
        return Hosts.of_run(cluster, self._options.folder, self._config, self._place)

    def check(self, size: Size, device: Device | None) -> None:
        """As evaluation does at its start."""
        _refuse_ranks(self._options.ranks, size)
        if self._is_visible:
            evaluate_verb.check(self._options, size.world_size)
        else:
            _note(f"not on this machine, and so not checked: {self._options.folder}, {self._options.data}")

    def _find(self) -> Config:
        options = self._options
        return saved_run.find(options.folder, options.checkpoint or "newest", options.config_keys).config


class Diagnosis:
    """`launch/doctor.py`, which examines the machines by itself: that is what it is for."""

    module = "launch.doctor"
    grace_s = 30

    def __init__(self, arguments: Sequence[str], place: Place) -> None:
        self._options = cli.parse(["doctor", *arguments])
        doctor_verb.runtime_of(self._options)

    def hosts(self, cluster: str) -> Hosts:
        """Those of `--cluster`."""
        return Hosts.of_config(cluster, Config())

    def check(self, size: Size, device: Device | None) -> None:
        """Its arguments are checked already."""
        _refuse_ranks(self._options.ranks, size)


def _refuse_ranks(given: int | None, size: Size) -> None:
    if given not in (None, size.world_size):
        raise UserError(f"--ranks is {given}, but -j {size} starts {size.world_size}; leave --ranks out")


def _note(line: str) -> None:
    print(f"note: {line}", file=sys.stderr)


def prepare_memory(arguments: Sequence[str]) -> int:
    """Bytes that `dlrm-dist prepare ARGUMENTS` keeps to.

    Raises:
        UserError: the command line is wrong.
    """
    return int(cli.parse(["prepare", *arguments]).memory)

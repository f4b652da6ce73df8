"""A run's folder, read: state, config, environment, and what was measured."""

import json
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from dlrm_dist.config import Config
from dlrm_dist.errors import UserError, first_line
from dlrm_dist.runs import state

_CONFIG = "config.toml"


@dataclass(frozen=True)
class Record:
    """What a run's folder tells.

    Attributes:
        path: the folder.
        state: as `state.read` gives it.
        config: the values of its config by `section.key`.
        environment: packages, machine, ranks.
        train: reports of the training, in order of steps.
        scores: scores of the validation, in order of steps.
        result: the content of result.json, empty where there is none.
    """

    path: Path
    state: dict[str, str]
    config: dict[str, Any]
    environment: dict[str, Any]
    train: list[dict[str, Any]]
    scores: list[dict[str, Any]]
    result: dict[str, Any]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def step(self) -> int:
        """The last step that was reported."""
        return max((line["step"] for line in [*self.train[-1:], *self.scores[-1:]]), default=0)

    @cached_property
    def samples_per_s(self) -> float | None:
        """Of the whole run where it is finished, else the median of the reports without the first (the warm-up)."""
        if "samples_per_s" in self.result:
            return float(self.result["samples_per_s"])
        rates = [line["samples_per_s"] for line in self.train[1:] or self.train]
        return median(rates) if rates else None

    @property
    def last_scores(self) -> dict[str, Any]:
        """The figures of the last validation; empty where there was none."""
        return self.scores[-1] if self.scores else {}


def is_run(path: Path) -> bool:
    """Whether `path` is the folder of a run."""
    return (path / _CONFIG).is_file() and (path / "plan.json").is_file()


def read(path: Path) -> Record:
    """Read a run's folder; the run may still be going on.

    Raises:
        UserError: it is no run's folder, or a file in it is damaged.
    """
    if not is_run(path):
        raise UserError(f"{path}: is not the folder of a run (no {_CONFIG}, no plan.json); name runs/NAME")
    now = state.read(path)
    lines = _lines(path / "metrics.jsonl")
    return Record(
        path=path,
        state=now,
        config=_config(path / _CONFIG),
        environment=_json(path / "environment.json"),
        train=[line for line in lines if line["split"] == "train"],
        scores=[line for line in lines if line["split"] != "train"],
        result=_json(path / "result.json") if now["state"] == "finished" else {},
    )


def flat(values: dict[str, Any]) -> dict[str, Any]:
    """A config's values by `section.key`."""
    return {f"{section}.{key}": value for section, table in values.items() for key, value in table.items()}


def defaults() -> dict[str, Any]:
    """The default of each config key."""
    return flat(Config().model_dump(mode="json"))


def _config(path: Path) -> dict[str, Any]:
    """A file of a config; keys that it does not have were not given."""
    try:
        return dict.fromkeys(defaults()) | flat(tomllib.loads(path.read_text()))
    except (OSError, ValueError, AttributeError) as error:
        raise _damaged(path, error) from None


def _json(path: Path) -> dict[str, Any]:
    """A file of one JSON object; empty where there is no file."""
    if not path.exists():
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        return dict(found)
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(path, error) from None


def _lines(path: Path) -> list[dict[str, Any]]:
    """Reports in order of steps; a last line that is not whole is being written, or was when the run was killed."""
    if not path.exists():
        return []
    try:
        text = path.read_text()
        found = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        return sorted(found, key=lambda line: (line["step"], line["split"] != "train"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: is damaged: {first_line(error)}; a run's folder is to be left as the run wrote it")

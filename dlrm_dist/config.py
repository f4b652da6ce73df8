"""The run's configuration: one frozen section per TOML table, validated at the start.

Sources, the later wins: defaults, the TOML file given by `--config`, `--section.key value` on the command line. Unknown
keys, wrong types and impossible values end the program with one line that names the key, what was found, what is
allowed. No environment variable is read.
"""

import difflib
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import tomli_w
from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from dlrm_dist.errors import UserError
from dlrm_dist.sections import (
    CheckpointSection,
    DataSection,
    EvalSection,
    MetricsSection,
    MlperfSection,
    ModelSection,
    OptimizerSection,
    RunSection,
    RuntimeSection,
    ScheduleSection,
    ShardingSection,
    TrainSection,
)

_PROGRAM = "launch/train.py [--config FILE.toml]"
_KEY = re.compile(r"--[A-Za-z_]")


class Config(BaseSettings):
    """Trains and scores a model.

    --config FILE.toml gives values by section; --section.key value on the line overrides them; a list is written 64,16.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        cli_parse_args=False,
        cli_exit_on_error=False,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_use_class_docs_for_groups=True,
        nested_model_default_partial_update=True,
    )
    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    sharding: ShardingSection = ShardingSection()
    train: TrainSection = TrainSection()
    checkpoint: CheckpointSection = CheckpointSection()
    eval: EvalSection = EvalSection()
    metrics: MetricsSection = MetricsSection()
    runtime: RuntimeSection = RuntimeSection()
    mlperf: MlperfSection = MlperfSection()
    run: RunSection = RunSection()

    sections: ClassVar[tuple[str, ...]] = (
        "data",
        "model",
        "optimizer",
        "schedule",
        "sharding",
        "train",
        "checkpoint",
        "eval",
        "metrics",
        "runtime",
        "mlperf",
        "run",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only the TOML file's values (given as keyword arguments), and the command line before them."""
        return (init_settings,)

    def write(self, path: Path) -> None:
        """Write the effective configuration as TOML that `load` reads back to an equal one."""
        path.write_text(tomli_w.dumps(self.model_dump(mode="json", exclude_none=True)))


def load(arguments: Sequence[str]) -> Config:
    """The configuration from `[--config FILE] [--section.key value ...]`.

    `--help` prints each key with its meaning and default, and exits 0.

    Raises:
        UserError: an unreadable file, an unknown key (with the nearest known one), a wrong type, an impossible value.
    """
    path, rest = _take_config(list(arguments))
    values = _read_toml(path) if path else {}
    _refuse_unknown(values, rest)
    try:
        return Config(_cli_parse_args=_last_given(rest), _cli_prog_name=_PROGRAM, **values)  # type: ignore[call-arg]
    except ValidationError as error:
        raise UserError(_one_line(error)) from None
    except SettingsError as error:
        text = str(error.__cause__ or error).removeprefix("error parsing CLI: ").replace("\n", " ")
        raise UserError(f"{text}; see --help") from None


def file_of(arguments: Sequence[str]) -> Path | None:
    """The file that `--config` names, if it does."""
    return _take_config(list(arguments))[0]


def known_keys() -> list[str]:
    """Every key as `section.key`."""
    fields = Config.model_fields
    return [
        f"{name}.{field.alias or key}"
        for name in Config.sections
        for key, field in fields[name].annotation.model_fields.items()  # type: ignore[union-attr]
    ]


def _take_config(arguments: list[str]) -> tuple[Path | None, list[str]]:
    """Split `--config FILE` (or `--config=FILE`) off the other arguments."""
    path: Path | None = None
    rest = []
    words = iter(arguments)
    for word in words:
        if word == "--config":
            value = next(words, None)
            if value is None:
                raise UserError("--config needs a file: --config launch/configs/NAME.toml")
            path = Path(value)
        elif word.startswith("--config="):
            path = Path(word.partition("=")[2])
        else:
            rest.append(word)
    return path, rest


def _last_given(arguments: list[str]) -> list[str]:
    """The last value of each key: pydantic would make one list of a list that is given twice."""
    given: dict[str, list[str]] = {}
    key = ""
    for word in arguments:
        if _KEY.match(word):
            key = word.partition("=")[0]
            given[key] = []
        given.setdefault(key, []).append(word)
    return [word for words in given.values() for word in words]


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise UserError(f"--config {path}: cannot be read: {error.strerror}; examples are in launch/configs/") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path}: is not valid TOML: {error}") from None


def _refuse_unknown(values: dict[str, Any], arguments: list[str]) -> None:
    """Name the first key that does not exist, with the nearest that does."""
    keys = known_keys()
    found = [word[2:].partition("=")[0] for word in arguments if _KEY.match(word)]
    for section, table in values.items():
        if section not in Config.sections:
            near = difflib.get_close_matches(section, Config.sections, n=1, cutoff=0.4)
            hint = f"did you mean [{near[0]}]?" if near else f"sections are {', '.join(Config.sections)}"
            raise UserError(f"unknown config section {section}: {hint}")
        if not isinstance(table, dict):
            raise UserError(f"config: {section} is a section, not a value; write [{section}] and its keys below")
        found += [f"{section}.{key}" for key in table]
    for key in found:
        if key not in keys and key not in ("help", "h"):
            near = difflib.get_close_matches(key, keys, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else "see --help for all keys"
            raise UserError(f"unknown config key {key}: {hint}")


def _one_line(error: ValidationError) -> str:
    """A validation error as one line: key, what is allowed, what was found."""
    problems = error.errors()
    first = problems[0]
    key = ".".join(str(part) for part in first["loc"][:2])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "value_error":  # our own validators say everything themselves
        return first["msg"].removeprefix("Value error, ") + more
    return f"{key}: {first['msg']}; found {first['input']!r}{more}"

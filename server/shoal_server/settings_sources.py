"""Where settings come from: read, merged and checked.

Precedence, weakest first: the default, the preset, the TOML file (`SHOAL_CONFIG_FILE` or
`--config-file`), the environment (`SHOAL_<NAME>`), the command line
(`--<name-with-dashes>`). The environment is read when `load_settings` is called,
never at import time.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_settings import EnvSettingsSource

from shoal_server.presets import PRESETS
from shoal_server.settings import ENV_PREFIX, UNSET, Settings

CONFIG_FILE_ENV = "SHOAL_CONFIG_FILE"

# Variables with the prefix that others read: the SDK's, the Makefile's.
_OTHERS = frozenset({"CONFIG_FILE", "ADDRESS", "EXPORT_ENV"})


class SettingsError(Exception):
    """A setting is wrong; the message names it, its source and the value.

    Attributes:
        name: Of the setting; empty where several do not go together.
    """

    def __init__(self, message: str, *, name: str = "") -> None:
        super().__init__(message)
        self.name = name


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """Settings and, for each, where its value came from."""

    values: Settings
    origins: Mapping[str, str]
    """By name: `default`, `preset NAME`, `command line`, a variable's name or a file's."""
    unknown_variables: tuple[str, ...]
    """Variables with our prefix that name no setting: typing errors, mostly."""


def load_settings(
    command_line: Mapping[str, object] | None = None, config_file: Path | None = None
) -> LoadedSettings:
    """Merge the four sources and check the result.

    Args:
        command_line: Values given as flags, by setting name.
        config_file: TOML file; None: the one that `SHOAL_CONFIG_FILE` names.

    Raises:
        SettingsError: An unknown name or a value out of its limits.
    """
    if config_file is None and os.environ.get(CONFIG_FILE_ENV):
        config_file = Path(os.environ[CONFIG_FILE_ENV])
    merged: dict[str, Any] = {}
    origins = dict.fromkeys(Settings.model_fields, "default")
    if config_file is not None:
        from_file = _read_toml(config_file)
        merged |= from_file
        origins |= dict.fromkeys(from_file, config_file.name)
    from_environment = EnvSettingsSource(Settings)()
    merged |= from_environment
    origins |= {name: _variable(name) for name in from_environment}
    merged |= command_line or {}
    origins |= dict.fromkeys(command_line or {}, "command line")
    preset = str(merged.get("preset"))
    from_preset = {k: v for k, v in PRESETS.get(preset, {}).items() if k not in merged}
    merged |= from_preset
    origins |= dict.fromkeys(from_preset, f"preset {preset}")
    try:
        values = Settings(**merged)
    except ValidationError as error:
        raise SettingsError(_explain(error, origins)) from error
    _check_together(values)
    return LoadedSettings(values, origins, _unknown_variables())


def changed_settings(values: Settings, texts: Mapping[str, str]) -> Settings:
    """The settings with other values for some of them, checked.

    Args:
        values: As they are.
        texts: As the command line takes them, by names that there are; `unset` where
            that is the default.

    Raises:
        SettingsError: A value is out of its limits, or some do not go together.
    """
    changes = {
        name: None if text == UNSET and Settings.model_fields[name].default is None else text
        for name, text in texts.items()
    }
    try:
        # Past BaseSettings, which would look for sources for most of a millisecond.
        after = Settings.__new__(Settings)
        BaseModel.__init__(after, **(values.model_dump() | changes))
    except ValidationError as error:
        wrong = str(error.errors()[0]["loc"][0])
        raise SettingsError(
            _explain(error, dict.fromkeys(texts, "the request")), name=wrong
        ) from error
    _check_together(after)
    return after


def _variable(name: str) -> str:
    return ENV_PREFIX + name.upper()


def _read_toml(path: Path) -> Mapping[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from error


def _unknown_variables() -> tuple[str, ...]:
    known = {_variable(name) for name in Settings.model_fields} | {
        ENV_PREFIX + name for name in _OTHERS
    }
    return tuple(
        sorted(name for name in os.environ if name.startswith(ENV_PREFIX) and name not in known)
    )


def _explain(error: ValidationError, origins: Mapping[str, str]) -> str:
    lines = []
    for problem in error.errors():
        name = str(problem["loc"][0])
        origin = origins.get(name, "?")
        if problem["type"] == "extra_forbidden":
            lines.append(f"{name}: no such setting (from {origin})")
        else:
            lines.append(f"{name}: {problem['msg']}, not {problem['input']!r} (from {origin})")
    return "\n".join(lines)


def _check_together(values: Settings) -> None:
    if (values.tls_cert_file is None) != (values.tls_key_file is None):
        raise SettingsError("tls_cert_file and tls_key_file go together; only one is set")
    if values.tls_client_ca_file is not None and values.tls_cert_file is None:
        raise SettingsError("tls_client_ca_file needs tls_cert_file and tls_key_file")
    if not (
        values.pressure_lower_threshold
        < values.pressure_threshold
        < values.pressure_critical_threshold
    ):
        raise SettingsError(
            f"pressure_lower_threshold ({values.pressure_lower_threshold}), pressure_threshold "
            f"({values.pressure_threshold}) and pressure_critical_threshold "
            f"({values.pressure_critical_threshold}) must rise in this order"
        )
    if values.max_request_bytes > values.max_message_bytes:
        raise SettingsError(
            f"max_request_bytes ({values.max_request_bytes}) is above "
            f"max_message_bytes ({values.max_message_bytes})"
        )

"""Command-line flags made of the settings, so that no option is defined twice."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from shoal_server.settings import ENV_PREFIX, Settings, show
from shoal_server.settings_sources import LoadedSettings, SettingsError, load_settings


def with_settings(command: Callable[[LoadedSettings], None]) -> Callable[..., None]:
    """Give a command a flag for every setting, and the settings that result.

    Flags that are not given stay out, so that the weaker sources are heard.
    """

    def wrapped(config_file: Path | None = None, **flags: object) -> None:
        given = {name: value for name, value in flags.items() if value is not None}
        try:
            loaded = load_settings(given, config_file)
        except SettingsError as error:
            typer.echo(f"shoal: {error}", err=True)
            raise typer.Exit(2) from None
        command(loaded)

    wrapped.__name__ = command.__name__
    wrapped.__doc__ = command.__doc__
    parameters = [_config_file(), *(_flag(n, f) for n, f in Settings.model_fields.items())]
    # typer reads the signature, not the function.
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {each.name: each.annotation for each in parameters}
    return wrapped


def _config_file() -> inspect.Parameter:
    option = typer.Option(help="TOML file with settings by name (or SHOAL_CONFIG_FILE).")
    return inspect.Parameter(
        "config_file",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[Path | None, option],
    )


def _flag(name: str, field: FieldInfo) -> inspect.Parameter:
    extra = field.json_schema_extra
    group = extra["group"] if isinstance(extra, dict) else None
    option = typer.Option(
        help=f"{field.description} [{ENV_PREFIX}{name.upper()}; default: {show(field.default)}]",
        rich_help_panel=str(group),
        show_default=False,
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[_flag_type(field) | None, option],
    )


def _flag_type(field: FieldInfo) -> Any:
    """What typer can parse of a field's type; pydantic checks the rest."""
    kind = field.annotation
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(each for each in get_args(kind) if each is not type(None))
    if get_origin(kind) is Literal or kind not in (bool, int, float, Path):
        return str
    return kind

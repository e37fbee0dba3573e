"""`shoal models`: what it can do, and where each part is."""

from __future__ import annotations

from collections.abc import Callable

import typer

from shoal_server.cli.files import remove, verify
from shoal_server.cli.find import find
from shoal_server.cli.labels import COMMANDS as LABEL_COMMANDS
from shoal_server.cli.listing import list_models
from shoal_server.cli.memory import MEMORY_COMMANDS
from shoal_server.cli.prepare import pull, quantize
from shoal_server.cli.profile import profile
from shoal_server.cli.registration import COMMANDS as REGISTRATION_COMMANDS
from shoal_server.cli.show import show
from shoal_server.cli.statistics import stats
from shoal_server.cli.upkeep import COMMANDS as UPKEEP_COMMANDS
from shoal_server.cli.usage import usage
from shoal_server.cli.versions import COMMANDS as VERSION_COMMANDS
from shoal_server.cli.watch import watch

models_app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Prepare models, and look after those that are prepared, or served.",
)

_COMMANDS: dict[str, Callable[..., None]] = {
    "pull": pull,
    "quantize": quantize,
    "list": list_models,
    "show": show,
    "verify": verify,
    "remove": remove,
    "find": find,
    "profile": profile,
    "stats": stats,
    "usage": usage,
    "watch": watch,
    **VERSION_COMMANDS,
    **LABEL_COMMANDS,
    **MEMORY_COMMANDS,
    **UPKEEP_COMMANDS,
    **REGISTRATION_COMMANDS,
}
for _name, _command in _COMMANDS.items():
    models_app.command(_name)(_command)

"""Commands on the model repository of this machine: where it is, and how they fail."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from shoal_server.errors import InvalidInput, ShoalError
from shoal_server.registry.repository import default_model_dir

_FAILED = 1
_WRONG_USAGE = 2
_INTERRUPTED = 128 + signal.SIGINT

ModelDir = Annotated[
    Path,
    typer.Option(
        envvar="SHOAL_MODEL_DIR",
        default_factory=default_model_dir,
        show_default="./models where there is one, else the folder for the user's data",
        help="The model repository.",
    ),
]
Ref = Annotated[str, typer.Argument(metavar="NAME[@VERSION]")]


@contextmanager
def plain_errors() -> Iterator[None]:
    """End with one line and a status instead of a traceback."""
    try:
        yield
    except InvalidInput as error:
        fail(str(error), _WRONG_USAGE)
    except (ShoalError, OSError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted", _INTERRUPTED)


def fail(message: str, status: int = _FAILED) -> NoReturn:
    """End with one line and a status."""
    typer.echo(f"shoal: {message}", err=True)
    raise typer.Exit(status)

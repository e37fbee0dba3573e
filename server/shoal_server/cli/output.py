"""How commands print: JSON for programs, and tables that grep can read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated

import typer
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console, RenderableType
from rich.table import Table

_UNFOLDED = 100_000  # columns: no line is that long

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def echo_json(value: object, *, indent: int | None = 2) -> None:
    """Print a value; `indent=None` keeps it on one line."""
    typer.echo(json.dumps(value, indent=indent, ensure_ascii=False))


def facts_of(message: Message) -> dict[str, object]:
    """A message as ProtoJSON has it, under the names of the .proto files.

    With fields that are 0, false or empty: a program that looks for them would else have
    to know what is left out.
    """
    facts: dict[str, object] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return facts


def echo_message(message: Message) -> None:
    """Print a message as JSON."""
    echo_json(facts_of(message))


def echo_messages(messages: Iterable[Message]) -> None:
    """Print messages as a list in JSON."""
    echo_json([facts_of(each) for each in messages])


def new_table(*titles: str) -> Table:
    """A table without lines, to be filled."""
    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, no_wrap=True)
    return table


def unfolded() -> Console:
    """Prints whole lines: a name that is cut in two can not be copied, or found by grep."""
    return Console(width=_UNFOLDED)


def print_folded(*parts: RenderableType) -> None:
    """Print what is folded to fit a terminal; what reads a pipe wants whole lines."""
    console = Console()
    (console if console.is_terminal else unfolded()).print(*parts)


def in_words(name: str, prefix: str) -> str:
    """An enum's value without its prefix; nothing where it is unspecified."""
    word = name.removeprefix(prefix).lower().replace("_", " ")
    return "" if word == "unspecified" else word


def in_utc(moment: Timestamp) -> str:
    """A moment, to the second."""
    return moment.ToDatetime().isoformat(sep=" ", timespec="seconds") + " UTC"


def megabytes(size_bytes: int) -> str:
    """A size, for people."""
    return f"{size_bytes / 1e6:.0f} MB"

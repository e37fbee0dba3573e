"""What the commands that ask a server have in common."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from shoal.v1 import model_control_pb2 as pb
from shoal_server import cli
from shoal_server.cli.remote import Server

SOURCES = "".join(path.read_text() for path in Path(*cli.__path__).glob("*.py"))


def test_ctrl_c_ends_quietly() -> None:
    """No traceback, and the status that shells expect, whichever command it is."""
    with pytest.raises(typer.Exit) as ended, Server("127.0.0.1:1").control():
        raise KeyboardInterrupt
    assert ended.value.exit_code == 130


@pytest.mark.parametrize(
    "rpc", [rpc.name for rpc in pb.DESCRIPTOR.services_by_name["ModelControlService"].methods]
)
def test_every_rpc_has_a_command(rpc: str) -> None:
    """A new RPC can not be forgotten in `shoal`."""
    assert f"control.{rpc}(" in SOURCES

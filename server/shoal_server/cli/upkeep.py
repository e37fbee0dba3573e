"""`shoal models verify-vectors`, `reload`, `update`: keeping a running server's models good."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated

import typer

from shoal.v1 import updates_pb2, verification_pb2
from shoal_server.cli.output import AsJson, echo_message, echo_messages
from shoal_server.cli.remote import Address, CaFile, Server, ServerName, Timeout, Tls
from shoal_server.cli.versions import echo_bad

# Loading a large model takes its time; preparing one takes minutes.
_LOAD_TIMEOUT_S = 600.0
_UPDATE_TIMEOUT_S = 3600.0
_FAILED = 1

_Ref = Annotated[
    str,
    typer.Argument(
        metavar="[NAME[@VERSION]]", help="Default: the default model.", show_default=False
    ),
]


class Source(StrEnum):
    """Where newer versions come from."""

    SETTING = "setting"
    REPOSITORY = "repository"
    HUB = "hub"


_SOURCES = {
    Source.SETTING: updates_pb2.UPDATE_SOURCE_UNSPECIFIED,
    Source.REPOSITORY: updates_pb2.UPDATE_SOURCE_REPOSITORY,
    Source.HUB: updates_pb2.UPDATE_SOURCE_HUB,
}


def verify_vectors(
    ref: _Ref = "",
    as_json: AsJson = False,
    address: Address = "",
    timeout_s: Timeout = _LOAD_TIMEOUT_S,
    tls: Tls = False,
    ca_file: CaFile = None,
    server_name: ServerName = "",
) -> None:
    """Compare a model of a running server with the vectors kept since it was prepared.

    Exit 1 when it came off worse. `shoal models verify` compares files, without a server.
    """
    request = verification_pb2.VerifyModelRequest(model=ref)
    with Server(address, tls, ca_file, server_name).control() as control:
        results = control.VerifyModel(request, timeout=timeout_s).results
    if as_json:
        echo_messages(results)
    else:
        for each in results:
            typer.echo(f"{each.model}@{each.version} {describe(each.accuracy)}")
    if not all(each.accuracy.passed for each in results):
        raise typer.Exit(_FAILED)


def reload(
    ref: _Ref = "",
    as_json: AsJson = False,
    address: Address = "",
    timeout_s: Timeout = _LOAD_TIMEOUT_S,
    tls: Tls = False,
    ca_file: CaFile = None,
    server_name: ServerName = "",
) -> None:
    """Let a running server read a model's files again; requests are served all the while."""
    request = updates_pb2.ReloadModelRequest(model=ref)
    with Server(address, tls, ca_file, server_name).control() as control:
        results = control.ReloadModel(request, timeout=timeout_s).results
    if as_json:
        echo_messages(results)
        return
    for each in results:
        seconds = each.duration.ToNanoseconds() / 1e9
        where = f"serves on {each.device}" if each.device else "not in memory"
        typer.echo(f"{each.model}@{each.version}: files read again in {seconds:.3f} s, {where}")


def update(
    name: Annotated[
        str,
        typer.Argument(metavar="[NAME]", help="Default: the default model.", show_default=False),
    ] = "",
    source: Annotated[
        Source,
        typer.Option(
            help="Where to look: the model's folder; the hub, whose newer revision is "
            "prepared first; or as the server's setting auto_update says."
        ),
    ] = Source.SETTING,
    as_json: AsJson = False,
    address: Address = "",
    timeout_s: Timeout = _UPDATE_TIMEOUT_S,
    tls: Tls = False,
    ca_file: CaFile = None,
    server_name: ServerName = "",
) -> None:
    """Let a model's bare name mean the newest version that is good."""
    request = updates_pb2.UpdateModelRequest(model=name, source=_SOURCES[source])
    with Server(address, tls, ca_file, server_name).control() as control:
        answer = control.UpdateModel(request, timeout=timeout_s)
    if as_json:
        echo_message(answer)
        return
    shown = name or "the default model"
    bad = [each.model for each in answer.bad_versions]
    if not answer.updated:
        which = "the newest that is good" if bad else "the newest"
        served = [each for each in bad if each.endswith(f"@{answer.after}")]
        what = "stays, for there is none that is good" if served else f"is {which}"
        typer.echo(f"{shown}: version {answer.after} {what}")
        echo_bad(answer.bad_versions, served)
        return
    how = describe(answer.accuracy) if answer.HasField("accuracy") else "(no vectors are kept)"
    typer.echo(f"{shown}: updated from version {answer.before} to {answer.after} {how}")
    echo_bad(answer.bad_versions, served=())


def describe(accuracy: verification_pb2.Accuracy) -> str:
    """An outcome as a line for people."""
    what = f"({accuracy.precision}, {accuracy.texts} texts): "
    if not accuracy.HasField("least_cosine"):
        return what + accuracy.problem
    figures = f"cosine to {accuracy.reference} {_figure(accuracy.mean_cosine)} on average, at least"
    return (
        f"{what}{figures} {_figure(accuracy.least_cosine)}, expected "
        f"{_figure(accuracy.expected_least_cosine - accuracy.tolerance)}: "
        f"{'passed' if accuracy.passed else 'WORSE THAN WHEN IT WAS PREPARED'}"
    )


def _figure(cosine: float) -> str:
    return f"{cosine:.6f}"


COMMANDS: dict[str, Callable[..., None]] = {
    "verify-vectors": verify_vectors,
    "reload": reload,
    "update": update,
}

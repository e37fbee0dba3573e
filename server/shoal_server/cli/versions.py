"""`shoal models switch`, `rollback`, `aliases` …: what names mean on a running server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated

import typer

from shoal.v1 import versions_pb2 as pb
from shoal_server.cli.output import AsJson, echo_message, echo_messages, in_utc, new_table, unfolded
from shoal_server.cli.remote import Address, CaFile, Server, ServerName, Timeout, Tls

# Loading a large model takes its time.
_LOAD_TIMEOUT_S = 600.0

_Alias = Annotated[str, typer.Argument(metavar="ALIAS")]
_Name = Annotated[str, typer.Argument(metavar="NAME")]
_Keep = Annotated[
    bool,
    typer.Option("--keep-previous", help="Leave in memory what no name means any longer."),
]


def switch(
    alias: _Alias,
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME[@VERSION][=WEIGHT]...",
            help="One, or several that share the traffic by weight, such as m@1=95 m@2=5.",
        ),
    ],
    keep_previous: _Keep = False,
    address: Address = "",
    timeout_s: Timeout = _LOAD_TIMEOUT_S,
    tls: Tls = False,
    ca_file: CaFile = None,
    server_name: ServerName = "",
) -> None:
    """Let an alias stand for another version, or make it.

    The version is loaded first. Requests are served all the while.
    """
    request = pb.SwitchModelRequest(
        alias=alias, targets=map(_target, targets), keep_previous=keep_previous
    )
    with Server(address, tls, ca_file, server_name).control() as control:
        answer = control.SwitchModel(request, timeout=timeout_s)
    _print_switched(answer.alias, answer.times)
    echo_bad(answer.bad_versions, served=[each.model for each in answer.alias.targets])


def rollback(
    alias: _Alias,
    revision: Annotated[
        int | None,
        typer.Option(help="Of its history. Default: what served before.", min=1),
    ] = None,
    keep_previous: _Keep = False,
    address: Address = "",
    timeout_s: Timeout = _LOAD_TIMEOUT_S,
    tls: Tls = False,
    ca_file: CaFile = None,
    server_name: ServerName = "",
) -> None:
    """Let an alias stand for what it stood for before; again: for what was before that."""
    request = pb.RollbackModelRequest(alias=alias, revision=revision, keep_previous=keep_previous)
    with Server(address, tls, ca_file, server_name).control() as control:
        answer = control.RollbackModel(request, timeout=timeout_s)
    _print_switched(answer.alias, answer.times)
    echo_bad(answer.bad_versions, served=[each.model for each in answer.alias.targets])


def aliases(
    as_json: AsJson = False,
    address: Address = "",
    timeout_s: Timeout = 10,
    tls: Tls = False,
    ca_file: CaFile = None,
    server_name: ServerName = "",
) -> None:
    """List the aliases of a running server, with their history."""
    with Server(address, tls, ca_file, server_name).control() as control:
        found = control.ListAliases(pb.ListAliasesRequest(), timeout=timeout_s).aliases
    if as_json:
        echo_messages(found)
        return
    table = new_table("alias", "revision", "since", "targets", "restores")
    for alias in found:
        for each in reversed(alias.history):
            is_current = each.number == alias.history[-1].number
            table.add_row(
                alias.name,
                f"{each.number}{'*' * is_current}",
                in_utc(each.since),
                _shown(each.targets),
                str(each.restores or ""),
            )
    unfolded().print(table)


def delete_alias(
    alias: _Alias,
    address: Address = "",
    timeout_s: Timeout = 10,
    tls: Tls = False,
    ca_file: CaFile = None,
    server_name: ServerName = "",
) -> None:
    """Forget an alias and its history; what it stood for stays in memory."""
    with Server(address, tls, ca_file, server_name).control() as control:
        control.DeleteAlias(pb.DeleteAliasRequest(alias=alias), timeout=timeout_s)
    typer.echo(f"{alias}: no alias any longer")


def pin_version(
    name: _Name,
    version: Annotated[str, typer.Argument(metavar="VERSION")],
    address: Address = "",
    timeout_s: Timeout = _LOAD_TIMEOUT_S,
    tls: Tls = False,
    ca_file: CaFile = None,
    server_name: ServerName = "",
) -> None:
    """Let a model's bare name mean one version, whichever others come."""
    request = pb.SetVersionPolicyRequest(model=name, version=version)
    with Server(address, tls, ca_file, server_name).control() as control:
        answer = control.SetVersionPolicy(request, timeout=timeout_s)
    typer.echo(f"{name}: pinned to {name}@{answer.version}")
    echo_bad(answer.bad_versions, served=[f"{name}@{answer.version}"])


def unpin_version(
    name: _Name,
    address: Address = "",
    timeout_s: Timeout = _LOAD_TIMEOUT_S,
    tls: Tls = False,
    ca_file: CaFile = None,
    server_name: ServerName = "",
) -> None:
    """Let a model's bare name mean model.toml's default_version again, else the newest.

    The newest is one that is not known to be bad.
    """
    request = pb.SetVersionPolicyRequest(model=name)
    with Server(address, tls, ca_file, server_name).control() as control:
        answer = control.SetVersionPolicy(request, timeout=timeout_s)
    typer.echo(f"{name}: now {name}@{answer.version}")
    echo_bad(answer.bad_versions, served=[f"{name}@{answer.version}"])


def discover(
    as_json: AsJson = False,
    address: Address = "",
    timeout_s: Timeout = 60,
    tls: Tls = False,
    ca_file: CaFile = None,
    server_name: ServerName = "",
) -> None:
    """Let a running server read its repository anew, and print what is other than before."""
    with Server(address, tls, ca_file, server_name).control() as control:
        found = control.DiscoverModels(pb.DiscoverModelsRequest(), timeout=timeout_s)
    if as_json:
        echo_message(found)
        return
    kinds = {
        "added": found.added,
        "removed": found.removed,
        "changed": found.changed,
        "outdated in memory": found.outdated,
    }
    for kind, names in kinds.items():
        for name in names:
            typer.echo(f"{kind}: {name}")
    if not any(kinds.values()):
        typer.echo("nothing new")


COMMANDS: dict[str, Callable[..., None]] = {
    "switch": switch,
    "rollback": rollback,
    "aliases": aliases,
    "discover": discover,
    "delete-alias": delete_alias,
    "pin-version": pin_version,
    "unpin-version": unpin_version,
}


def echo_bad(versions: Iterable[pb.BadVersion], served: Sequence[str]) -> None:
    """Say of versions that are known to be bad whether they serve, and what is wrong."""
    for each in versions:
        what = "serves, though it is known to be bad" if each.model in served else "is passed over"
        typer.echo(f"{each.model} {what}: {each.reason}")


def _target(text: str) -> pb.AliasTarget:
    model, equals, weight = text.partition("=")
    if not equals:
        return pb.AliasTarget(model=model)
    if not weight.isdecimal() or int(weight) >= 1 << 32:
        raise typer.BadParameter(f"{text!r}: the weight is not a number of at least 1")
    return pb.AliasTarget(model=model, weight=int(weight))


def _print_switched(alias: pb.Alias, times: pb.SwitchTimes) -> None:
    warm_ms, switch_ms = (each.ToNanoseconds() / 1e6 for each in (times.warm, times.switch))
    typer.echo(
        f"{alias.name}: now {_shown(alias.targets)} "
        f"(warm after {warm_ms:.0f} ms, switched in {switch_ms:.1f} ms)"
    )


def _shown(targets: Iterable[pb.AliasTarget]) -> str:
    targets = list(targets)
    if len(targets) == 1:
        return targets[0].model
    return " ".join(f"{each.model}={each.weight}" for each in targets)

"""`shoal models memory`, `load`, `unload`, `pin`, `unpin`: what a running server holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer
from google.protobuf.duration_pb2 import Duration
from rich.table import Table

from shoal.v1 import model_control_pb2 as pb
from shoal_server.cli.output import (
    AsJson,
    echo_message,
    in_utc,
    in_words,
    megabytes,
    new_table,
    unfolded,
)
from shoal_server.cli.remote import Address, CaFile, Server, ServerName, Timeout, Tls

# Loading a large model takes its time, and so do the requests that an unload waits for.
_LOAD_TIMEOUT_S = 600.0
_SHOWN_DEPARTURES = 10

ForceAfter = Annotated[
    float | None,
    typer.Option(
        "--force-after",
        help="Fail the requests that are left after so many seconds. Default: wait for them.",
        min=0,
    ),
]
_Ref = Annotated[str, typer.Argument(metavar="NAME[@VERSION]")]


def memory(
    as_json: AsJson = False,
    address: Address = "",
    timeout_s: Timeout = 10,
    tls: Tls = False,
    ca_file: CaFile = None,
    server_name: ServerName = "",
) -> None:
    """Show the memory of a running server's devices, who is in it, warm, or left it last.

    Bytes of a model: what its load added where that could be told apart, else what is expected
    of its files. Idle left "for ever": it is pinned, or a request's keep-alive or a time-out of 0
    says so; `show NAME --live` tells of the first two.
    """
    with Server(address, tls, ca_file, server_name).control() as control:
        info = control.GetServerInfo(pb.GetServerInfoRequest(), timeout=timeout_s)
    if as_json:
        shown = pb.GetServerInfoResponse(
            devices=info.devices,
            residents=info.residents,
            warm_models=info.warm_models,
            departures=info.departures,
        )
        echo_message(shown)
        return
    console = unfolded()
    console.print(_devices(info))
    if info.residents:
        console.print(_residents(info))
    if info.warm_models:
        console.print(_warm(info))
    if info.departures:
        console.print(_departures(info))


def load(
    ref: _Ref,
    pin: Annotated[bool | None, typer.Option("--pin/--unpin", help="As `pin`, `unpin`.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")] = "",
    address: Address = "",
    timeout_s: Timeout = _LOAD_TIMEOUT_S,
    tls: Tls = False,
    ca_file: CaFile = None,
    server_name: ServerName = "",
) -> None:
    """Bring a model into a running server's memory."""
    request = pb.LoadModelRequest(model=ref, pin=pin, device=device)
    with Server(address, tls, ca_file, server_name).control() as control:
        _print_model(control.LoadModel(request, timeout=timeout_s).model)


def unload(
    ref: _Ref,
    force_after_s: ForceAfter = None,
    address: Address = "",
    timeout_s: Timeout = _LOAD_TIMEOUT_S,
    tls: Tls = False,
    ca_file: CaFile = None,
    server_name: ServerName = "",
) -> None:
    """Take a model out of a running server's memory, after the requests that use it."""
    request = pb.UnloadModelRequest(model=ref)
    if force_after_s is not None:
        request.force_after.FromNanoseconds(round(force_after_s * 1e9))
    with Server(address, tls, ca_file, server_name).control() as control:
        _print_model(control.UnloadModel(request, timeout=timeout_s).model)


def pin(
    ref: _Ref,
    address: Address = "",
    timeout_s: Timeout = 10,
    tls: Tls = False,
    ca_file: CaFile = None,
    server_name: ServerName = "",
) -> None:
    """Keep a model that is in memory there, whatever happens; `load --pin` loads it first."""
    request = pb.PinModelRequest(model=ref, pin=True)
    with Server(address, tls, ca_file, server_name).control() as control:
        _print_model(control.PinModel(request, timeout=timeout_s).model)


def unpin(
    ref: _Ref,
    address: Address = "",
    timeout_s: Timeout = 10,
    tls: Tls = False,
    ca_file: CaFile = None,
    server_name: ServerName = "",
) -> None:
    """Let a model go again: for room, for idleness, when memory is short."""
    request = pb.PinModelRequest(model=ref, pin=False)
    with Server(address, tls, ca_file, server_name).control() as control:
        _print_model(control.PinModel(request, timeout=timeout_s).model)


MEMORY_COMMANDS: dict[str, Callable[..., None]] = {
    "memory": memory,
    "load": load,
    "unload": unload,
    "pin": pin,
    "unpin": unpin,
}


def _devices(info: pb.GetServerInfoResponse) -> Table:
    table = new_table("device", "pressure", "in use", "models", "bytes", "budget")
    for each in info.devices:
        table.add_row(
            each.device,
            in_words(pb.PressureLevel.Name(each.pressure), "PRESSURE_LEVEL_"),
            f"{each.memory_use:.0%}" if each.HasField("memory_use") else "",
            str(each.resident_models),
            _mb(each.resident_bytes),
            _mb(each.memory_budget_bytes),
        )
    return table


def _residents(info: pb.GetServerInfoResponse) -> Table:
    table = new_table(
        *("model", "device", "state", "bytes", "uses", "leases", "last use", "idle left"),
        *("pinned", "loaded for"),
    )
    for each in info.residents:
        held = each.residency
        table.add_row(
            f"{each.model}@{each.version}",
            held.device,
            in_words(pb.ModelState.Name(each.state), "MODEL_STATE_"),
            _mb(held.memory_bytes),
            str(held.uses),
            str(held.leases),
            in_utc(held.last_used_at),
            _left(held.idle_left) if held.HasField("idle_left") else "for ever",
            "pinned" if held.pinned else "",
            in_words(pb.LoadReason.Name(held.load_reason), "LOAD_REASON_"),
        )
    return table


def _warm(info: pb.GetServerInfoResponse) -> Table:
    table = new_table("warm in RAM", "bytes", "last use", "idle left")
    for each in info.warm_models:
        table.add_row(
            f"{each.model}@{each.version}",
            _mb(each.memory_bytes),
            in_utc(each.last_used_at),
            _left(each.idle_left) if each.HasField("idle_left") else "for ever",
        )
    return table


def _departures(info: pb.GetServerInfoResponse) -> Table:
    table = new_table("left", "at", "why")
    for each in info.departures[:_SHOWN_DEPARTURES]:
        room = f" to make room for {each.made_room_for}" if each.made_room_for else ""
        why = in_words(pb.UnloadReason.Name(each.reason), "UNLOAD_REASON_")
        table.add_row(f"{each.model}@{each.version}", in_utc(each.at), why + room)
    return table


def _print_model(model: pb.ModelInfo) -> None:
    state = in_words(pb.ModelState.Name(model.state), "MODEL_STATE_")
    why = f" ({model.state_reason})" if model.state_reason not in ("", "pinned") else ""
    facts = [f"{model.name}@{model.version}: {state}{why}"]
    if model.HasField("residency"):
        facts.append(f"on {model.residency.device}, {_mb(model.residency.memory_bytes)}")
        facts += ["pinned"] * model.residency.pinned
    typer.echo(", ".join(facts))


def _mb(size_bytes: int) -> str:
    return megabytes(size_bytes) if size_bytes else ""


def _left(duration: Duration) -> str:
    return f"{duration.ToNanoseconds() / 1e9:.0f} s"

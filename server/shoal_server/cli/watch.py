"""`shoal models watch`: what happens on a running server, a line each, as it happens."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC
from itertools import zip_longest
from typing import Annotated, Any

import grpc
import typer
from google.protobuf.json_format import MessageToDict

from shoal.v1 import model_control_pb2 as pb
from shoal.v1 import profile_pb2 as profile_pb
from shoal.v1 import registration_pb2 as registration_pb
from shoal.v1 import settings_pb2 as settings_pb
from shoal.v1 import updates_pb2 as updates_pb
from shoal.v1 import usage_pb2 as usage_pb
from shoal.v1 import verification_pb2 as verification_pb
from shoal.v1 import versions_pb2 as versions_pb
from shoal.v1.model_control_pb2_grpc import ModelControlServiceStub
from shoal_server.cli.output import facts_of
from shoal_server.cli.remote import Address, CaFile, Server, ServerName, Tls

_WRONG_USAGE = 2
# Between two looks for a server that went away, beside gRPC's own back-off.
_PAUSE_S = 0.5
_KIND_PREFIX = "EVENT_KIND_"
_KINDS = [name.removeprefix(_KIND_PREFIX).lower() for name in pb.EventKind.keys()[1:]]


def watch(
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model", metavar="NAME[@VERSION]", help="Only events about it; may be repeated."
        ),
    ] = None,
    kinds: Annotated[
        list[str] | None,
        typer.Option(
            "--kind",
            metavar="KIND",
            help=f"Only events of this kind; may be repeated: {', '.join(_KINDS)}.",
        ),
    ] = None,
    since: Annotated[
        int | None,
        typer.Option(
            help="Begin behind the event of this number; 0: with the oldest that the server "
            "keeps. Default: with what happens from now on.",
            min=0,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a line of JSON each, for programs.")
    ] = False,
    address: Address = "",
    tls: Tls = False,
    ca_file: CaFile = None,
    server_name: ServerName = "",
) -> None:
    """Show what happens to the models of a running server, until Ctrl-C.

    When the server goes away, waits for it and goes on.
    """
    request = pb.WatchEventsRequest(
        models=models or (), kinds=map(_kind, kinds or ()), after_sequence=since
    )
    show = _json_line if as_json else describe
    with Server(address, tls, ca_file, server_name).control() as control:
        for event in _events(control, request):
            typer.echo(show(event))


def describe(event: pb.Event) -> str:
    """An event as a line for people: local time, number, what happened."""
    kind = event.WhichOneof("kind")
    if kind is None:
        what = "something that this version of `shoal` does not know"
    elif kind in _SENTENCES:
        what = _SENTENCES[kind](getattr(event, kind))
    else:
        facts = MessageToDict(getattr(event, kind), preserving_proto_field_name=True)
        what = " ".join([kind, *(f"{name}={value}" for name, value in facts.items())])
    at = event.time.ToDatetime(tzinfo=UTC).astimezone()
    return f"{at:%H:%M:%S}.{at.microsecond // 1000:03d}  {event.sequence:>6}  {what}"


def _events(control: ModelControlServiceStub, request: pb.WatchEventsRequest) -> Iterator[pb.Event]:
    """The events asked for, from one server to its successor."""
    has_begun = False
    while True:
        try:
            # A server that is away is waited for, but one must have been there.
            for answer in control.WatchEvents(request, wait_for_ready=has_begun):
                has_begun = True
                told = answer.mark if answer.HasField("mark") else answer.event
                request.after_sequence = told.sequence
                request.instance_id = told.instance_id
                if answer.HasField("event"):
                    yield answer.event
        except grpc.RpcError as error:
            if not has_begun or error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            typer.echo(f"shoal: {error.details()}; waiting for the server", err=True)
            time.sleep(_PAUSE_S)


def _kind(name: str) -> pb.EventKind.ValueType:
    if name not in _KINDS:
        typer.echo(f"shoal: {name!r} is not one of {', '.join(_KINDS)}", err=True)
        raise typer.Exit(_WRONG_USAGE)
    return pb.EventKind.Value(_KIND_PREFIX + name.upper())


def _json_line(event: pb.Event) -> str:
    return json.dumps(facts_of(event), ensure_ascii=False)


def _state_changed(event: pb.ModelStateChanged) -> str:
    before = _word(pb.ModelState.Name, event.before, "MODEL_STATE_")
    after = _word(pb.ModelState.Name, event.after, "MODEL_STATE_")
    why = f" ({event.reason})" if event.reason else ""
    return f"{event.model}@{event.version}: {before} → {after}{why}"


def _loaded(event: pb.ModelLoaded) -> str:
    why = _word(pb.LoadReason.Name, event.reason, "LOAD_REASON_")
    warm = ", warm before" if event.from_warm else ""
    return (
        f"{event.model}@{event.version}: loaded on {event.device} in "
        f"{event.duration.ToNanoseconds() / 1e9:.3f} s, {event.memory_bytes / 1e6:.0f} MB "
        f"({why}{warm})"
    )


def _unloaded(event: pb.ModelUnloaded) -> str:
    why = _word(pb.UnloadReason.Name, event.reason, "UNLOAD_REASON_")
    room = f" to make room for {event.made_room_for}" if event.made_room_for else ""
    warm = ", stays warm in RAM" if event.stays_warm else ""
    return f"{event.model}@{event.version}: unloaded ({why}{room}{warm})"


def _warm_released(event: pb.WarmModelReleased) -> str:
    why = event.problem or _word(pb.UnloadReason.Name, event.reason, "UNLOAD_REASON_")
    room = f" to make room for {event.made_room_for}" if event.made_room_for else ""
    return f"{event.model}@{event.version}: no longer warm in RAM ({why}{room})"


def _load_failed(event: pb.ModelLoadFailed) -> str:
    return (
        f"{event.model}@{event.version}: could not be loaded on {event.device}: "
        f"{event.message} ({event.reason})"
    )


def _pressure_changed(event: pb.PressureChanged) -> str:
    before = _word(pb.PressureLevel.Name, event.before, "PRESSURE_LEVEL_")
    after = _word(pb.PressureLevel.Name, event.after, "PRESSURE_LEVEL_")
    return f"{event.device}: memory pressure {before} → {after}, {event.memory_use:.0%} in use"


def _settings_changed(event: settings_pb.SettingsChanged) -> str:
    changes = (f"{each.name} {each.before} → {each.after}" for each in event.changes)
    return f"settings changed: {', '.join(changes)}"


def _switched(event: versions_pb.NameSwitched) -> str:
    cause = _word(versions_pb.SwitchCause.Name, event.cause, "SWITCH_CAUSE_")
    before = _shares(event.before, event.before_weights)
    return f"{event.name}: {before} → {_shares(event.after, event.after_weights)} ({cause})"


def _shares(keys: Iterable[str], weights: Iterable[int]) -> str:
    """Versions as `shoal models switch` takes them."""
    parts = zip_longest(keys, weights)
    return " ".join(key if weight is None else f"{key}={weight}" for key, weight in parts) or (
        "nothing"
    )


def _registered(event: registration_pb.ModelRegistered) -> str:
    version = f"@{event.version}" if event.version else ", without a prepared version"
    return f"{event.model}{version}: {'registered' if event.added else 'read anew'}"


def _deregistered(event: registration_pb.ModelDeregistered) -> str:
    return f"{event.model}: deregistered"


def _verified(event: verification_pb.ModelVerified) -> str:
    what = event.accuracy.problem or f"least cosine {event.accuracy.least_cosine:.6f}, as it should"
    return f"{event.model}@{event.version}: verified: {what}"


def _reloaded(event: updates_pb.ModelReloaded) -> str:
    where = f" on {event.device}" if event.device else ""
    seconds = event.duration.ToNanoseconds() / 1e9
    return f"{event.model}@{event.version}: files read again{where} in {seconds:.3f} s"


def _reload_failed(event: updates_pb.ModelReloadFailed) -> str:
    return (
        f"{event.model}@{event.version}: files could not be read again: "
        f"{event.message} ({event.reason})"
    )


def _updated(event: updates_pb.ModelUpdated) -> str:
    return f"{event.model}: updated from {event.before} to {event.after}"


def _update_failed(event: updates_pb.ModelUpdateFailed) -> str:
    what = f" to {event.candidate}" if event.candidate else ""
    return f"{event.model}@{event.version}: not updated{what}: {event.reason}"


def _profiled(event: profile_pb.ModelProfiled) -> str:
    best = "nothing is suggested"
    if event.max_batch_items:
        best = f"suggested: {event.max_batch_items} items, {event.max_batch_tokens} tokens a batch"
    seconds = event.duration.ToNanoseconds() / 1e9
    return (
        f"{event.model}@{event.version}: profiled in {event.precision} on {event.device}, "
        f"{event.cells} batches in {seconds:.1f} s; {best}"
    )


def _preload_decided(event: usage_pb.PreloadDecided) -> str:
    return (
        f"{event.model}@{event.version}: loaded ahead on {event.device}: {event.asked_for_as} is "
        f"asked for within {event.horizon.ToNanoseconds() / 6e10:.0f} min with a probability of "
        f"{event.probability:.0%}, {event.expected_requests:.1f} times on average"
    )


def _word(name: Callable[[Any], str], number: int, prefix: str) -> str:
    """An enum's value in words; a newer server's as its number."""
    try:
        return name(number).removeprefix(prefix).replace("_", " ").lower()
    except ValueError:
        return str(number)


_SENTENCES: dict[str, Callable[[Any], str]] = {
    "model_state_changed": _state_changed,
    "model_loaded": _loaded,
    "model_unloaded": _unloaded,
    "warm_model_released": _warm_released,
    "model_load_failed": _load_failed,
    "pressure_changed": _pressure_changed,
    "settings_changed": _settings_changed,
    "name_switched": _switched,
    "preload_decided": _preload_decided,
    "model_registered": _registered,
    "model_deregistered": _deregistered,
    "model_verified": _verified,
    "model_reloaded": _reloaded,
    "model_reload_failed": _reload_failed,
    "model_updated": _updated,
    "model_update_failed": _update_failed,
    "model_profiled": _profiled,
}

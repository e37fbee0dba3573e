"""`shoal models find`: the models of a running server that have what is asked for."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer
from rich.markup import escape

from shoal.v1 import capabilities_pb2 as capabilities_pb
from shoal.v1 import model_control_pb2 as pb
from shoal.v1.model_control_pb2_grpc import ModelControlServiceStub
from shoal_server.cli.output import AsJson, echo_messages, in_words, new_table, unfolded
from shoal_server.cli.remote import Address, CaFile, Server, ServerName, Timeout, Tls

_STATE = "MODEL_STATE_"
# Models in one answer; a server gives no more at once.
_PAGE = 1000

_KINDS = {
    name.removeprefix("MODEL_KIND_").lower(): value for name, value in pb.ModelKind.items()[1:]
}
_INPUT_TYPES = {
    name.removeprefix("INPUT_TYPE_").lower(): value
    for name, value in capabilities_pb.InputType.items()[1:]
}
_STATES = {name.removeprefix(_STATE).lower(): value for name, value in pb.ModelState.items()[1:]}


class Sort(StrEnum):
    """What models are sorted by."""

    NAME = "name"
    STATE = "state"
    FILE_BYTES = "file-bytes"
    LAST_USED = "last-used"


def find(
    text: Annotated[
        str, typer.Argument(help="Words in name, description, source, licence or tags.")
    ] = "",
    state: Annotated[
        list[str] | None,
        typer.Option(help=f"Any of them; may be repeated. One of {', '.join(_STATES)}."),
    ] = None,
    device: Annotated[str, typer.Option(help="In memory there: cpu, cuda:0, …")] = "",
    tag: Annotated[list[str] | None, typer.Option(help="All of them; may be repeated.")] = None,
    kind: Annotated[str, typer.Option(help=f"One of {', '.join(_KINDS)}.")] = "",
    dimensions: Annotated[int, typer.Option(help="Vectors of that size, whole or cut.", min=0)] = 0,
    tokens: Annotated[int, typer.Option(help="Takes inputs of so many tokens.", min=0)] = 0,
    language: Annotated[
        list[str] | None,
        typer.Option(help="As cards have them: en, zh-Hant; all of them; may be repeated."),
    ] = None,
    precision: Annotated[str, typer.Option(help="Has a graph in it: fp32, fp16, int8.")] = "",
    input_type: Annotated[
        str, typer.Option("--input", help=f"Takes it: one of {', '.join(_INPUT_TYPES)}.")
    ] = "",
    prompt: Annotated[str, typer.Option(help="Has a prompt of that name.")] = "",
    runs_on: Annotated[
        str, typer.Option(help="Can be run there, in memory or not: cpu, cuda, cuda:0, …")
    ] = "",
    deregistered: Annotated[
        bool,
        typer.Option("--deregistered", help="Only those that `register` can take back, instead."),
    ] = False,
    sort: Annotated[Sort, typer.Option(help="What to sort by.")] = Sort.NAME,
    descending: Annotated[bool, typer.Option("--descending", help="The greatest first.")] = False,
    limit: Annotated[int, typer.Option(help="At most so many.", min=1)] = 100,
    as_json: AsJson = False,
    address: Address = "",
    timeout_s: Timeout = 10,
    tls: Tls = False,
    ca_file: CaFile = None,
    server_name: ServerName = "",
) -> None:
    """Find models on a running server, in memory or not, every version by itself.

    Where there are several, * marks the one that the bare name means.
    """
    for each in state or ():
        _check_known(each, list(_STATES))
    _check_known(kind, list(_KINDS))
    _check_known(input_type, list(_INPUT_TYPES))
    if deregistered and state:
        raise typer.BadParameter("what is deregistered is in no state", param_hint="--state")
    request = pb.ListModelsRequest(
        states=[_STATES[each] for each in state or ()],
        device=device,
        tags=tag or (),
        text=text,
        kind=_KINDS.get(kind, pb.MODEL_KIND_UNSPECIFIED),
        dimensions=dimensions,
        tokens=tokens,
        languages=language or (),
        precision=precision,
        input_type=_INPUT_TYPES.get(input_type, capabilities_pb.INPUT_TYPE_UNSPECIFIED),
        prompt=prompt,
        runs_on=runs_on,
        scope=pb.MODEL_SCOPE_DEREGISTERED if deregistered else pb.MODEL_SCOPE_EVERY_VERSION,
        order_by=pb.ModelOrder.Value(f"MODEL_ORDER_{sort.name}"),
        descending=descending,
    )
    with Server(address, tls, ca_file, server_name).control() as control:
        models, total = _pages(control, request, limit, timeout_s)
    if len(models) < total:
        typer.echo(f"{len(models)} of {total}; --limit shows more", err=True)
    if as_json:
        echo_messages(models)
        return
    table = new_table(
        *("model", "", "state", "device", "dimensions", "precisions", "languages", "tags"),
        "why it is in its state",
    )
    for model in models:
        table.add_row(
            f"{model.name}@{model.version}" if model.version else model.name,
            "*" * (model.meant_by_name and len(model.versions) > 1),
            in_words(pb.ModelState.Name(model.state), _STATE),
            model.residency.device,
            str(model.dimensions or ""),
            " ".join(each.precision for each in model.variants),
            " ".join(model.languages),
            escape(" ".join(model.tags)),
            escape(model.state_reason),
        )
    unfolded().print(table)


def _pages(
    control: ModelControlServiceStub, request: pb.ListModelsRequest, limit: int, timeout_s: float
) -> tuple[list[pb.ModelInfo], int]:
    """What is asked for, up to a limit, and how much there is of it."""
    models: list[pb.ModelInfo] = []
    while True:
        request.page_size = min(_PAGE, limit - len(models))
        answer = control.ListModels(request, timeout=timeout_s)
        models += answer.models
        request.page_token = answer.next_page_token
        if not answer.next_page_token or len(models) >= limit:
            return models, answer.total


def _check_known(name: str, names: list[str]) -> None:
    if name and name not in names:
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(names)}")

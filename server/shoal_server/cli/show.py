"""`shoal models show`: all that is known of a model, in the repository or on a server."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated

import grpc
import typer
from rich.markup import escape
from rich.table import Table

from shoal.v1 import model_control_pb2 as pb
from shoal.v1.model_control_pb2_grpc import ModelControlServiceStub
from shoal_server.cli.local import ModelDir, Ref, plain_errors
from shoal_server.cli.output import (
    AsJson,
    echo_json,
    facts_of,
    in_words,
    megabytes,
    new_table,
    print_folded,
)
from shoal_server.cli.remote import Address, CaFile, Server, ServerName, Timeout, Tls
from shoal_server.core import ModelKey, ModelRef
from shoal_server.errors import ModelFileCorrupt
from shoal_server.registry.repository import ModelRepository

_ENUM_PREFIX = re.compile(
    "^(MODEL_STATE|MODEL_KIND|POOLING|INPUT_TYPE|LOAD_REASON|UNLOAD_REASON)_(?=[A-Z])"
)


def show(
    context: typer.Context,
    ref: Ref,
    model_dir: ModelDir,
    live: Annotated[
        bool,
        typer.Option(
            "--live",
            help="What a running server tells, instead: state, memory, languages, devices, "
            "accuracy. So does --address.",
        ),
    ] = False,
    as_json: AsJson = False,
    address: Address = "",
    timeout_s: Timeout = 10,
    tls: Tls = False,
    ca_file: CaFile = None,
    server_name: ServerName = "",
) -> None:
    """Show the manifests of one version, or what a running server tells of it.

    Of a bare NAME, a server tells also how each of its versions is; * marks the one that the
    name means, and the variant of each that is served.
    """
    # A variable may be set for all commands; an option is meant for this one.
    source = context.get_parameter_source("address")
    if live or (source is not None and source.name == "COMMANDLINE"):
        with Server(address, tls, ca_file, server_name).control() as control:
            model = control.GetModel(pb.GetModelRequest(model=ref), timeout=timeout_s).model
            versions = [] if "@" in ref else list(_every_version(control, model, timeout_s))
        facts = facts_of(model)
        shown = {**facts, "variants": {each.precision: facts_of(each) for each in model.variants}}
        if "@" not in ref:
            facts["every_version"] = [facts_of(each) for each in versions]
    else:
        versions = []
        with plain_errors():
            repository = ModelRepository(model_dir)
            shown = facts = _prepared(repository, repository.resolve(ModelRef.parse(ref)))
    if as_json:
        echo_json(facts)
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for field, value in _flat(shown):
        table.add_row(field, escape(value))
    print_folded(table)
    if len(versions) > 1:
        print_folded("", _version_table(versions))


def _every_version(
    control: ModelControlServiceStub, model: pb.ModelInfo, timeout_s: float
) -> Iterator[pb.ModelInfo]:
    for version in model.versions:
        request = pb.GetModelRequest(model=f"{model.name}@{version}")
        try:
            yield control.GetModel(request, timeout=timeout_s).model
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:  # it was removed meanwhile
                raise


def _version_table(versions: Iterable[pb.ModelInfo]) -> Table:
    """The versions of a model; * marks the one that its bare name means."""
    table = new_table("version", "", "state", "in memory", "variants")
    table.add_column("why it is in its state", overflow="fold")
    for each in versions:
        residency = each.residency
        in_memory = f"{residency.device}, {megabytes(residency.memory_bytes)}"
        table.add_row(
            each.version,
            "*" * each.meant_by_name,
            in_words(pb.ModelState.Name(each.state), "MODEL_STATE_"),
            in_memory if residency.device else "",
            " ".join(variant.precision + "*" * variant.served for variant in each.variants),
            escape(each.state_reason),
        )
    return table


def _prepared(repository: ModelRepository, key: ModelKey) -> dict[str, object]:
    manifest = repository.version_manifest(key.name, key.version)
    return {
        "name": key.name,
        "version": key.version,
        "folder": str(repository.version_folder(key.name, key.version)),
        "size_bytes": repository.size_bytes(key.name, key.version),
        "model": repository.model_manifest(key.name).model_dump(mode="json"),
        "problem": _problem(repository, key, manifest.files),
        "files": manifest.model_dump(mode="json"),
        "variants": _variants(repository, key),
    }


def _problem(repository: ModelRepository, key: ModelKey, files: Iterable[str]) -> str:
    """Which of its files is missing; empty: none."""
    try:
        repository.look_for_files(key.name, key.version, files)
    except ModelFileCorrupt as error:
        return error.message
    return ""


def _variants(repository: ModelRepository, key: ModelKey) -> dict[str, object]:
    """What there is to say of a version's variants, by precision."""
    shown: dict[str, object] = {}
    for precision in repository.variants(key.name, key.version):
        manifest = repository.variant_manifest(key.name, key.version, precision)
        size_bytes = repository.variant_size_bytes(key.name, key.version, precision)
        shown[precision] = {"size_bytes": size_bytes, **manifest.model_dump(mode="json")}
    return shown


def _flat(facts: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for field, value in facts.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{field}.")
        elif isinstance(value, list) and value:
            yield prefix + field, ", ".join(map(_word, value))
        elif value not in (None, "", []) and not str(value).endswith("_UNSPECIFIED"):
            yield prefix + field, _word(value)


def _word(value: object) -> str:
    text = str(value)
    word = _ENUM_PREFIX.sub("", text)
    return text if word == text else word.lower()

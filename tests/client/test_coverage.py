"""The SDK can do what the protos can, and both clients can do the same."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from types import ModuleType

import pytest
from grpc_health.v1 import health_pb2

import shoal.v1
from shoal_client import AsyncClient, Client, EmbedOptions
from shoal_client.requests import new_embed_request

# RPCs whose method has another name than theirs.
NAMES = {
    "EmbedStream": "embed_iter",
    "GetServerInfo": "server_info",
    "GetStatistics": "statistics",
    "Check": "health",
}
# Of the health service: every change of a status, all statuses.
NOT_COVERED = {"Watch", "List"}
# What a caller does not choose.
NO_OPTIONS = {"texts", "tokens", "images"}


def proto_modules() -> Iterator[ModuleType]:
    for module in pkgutil.iter_modules(shoal.v1.__path__, "shoal.v1."):
        if module.name.endswith("_pb2"):
            yield importlib.import_module(module.name)


def rpc_names() -> list[str]:
    return [
        method.name
        for file in (*(module.DESCRIPTOR for module in proto_modules()), health_pb2.DESCRIPTOR)
        for service in file.services_by_name.values()
        for method in service.methods
        if method.name not in NOT_COVERED
    ]


def public_methods(client: type) -> dict[str, inspect.Signature]:
    return {
        name: inspect.signature(method)
        for name, method in inspect.getmembers(client, inspect.isfunction)
        if not name.startswith("_")
    }


@pytest.mark.parametrize("client", [Client, AsyncClient])
@pytest.mark.parametrize("rpc", rpc_names())
def test_every_rpc_has_a_method(client: type, rpc: str) -> None:
    """A new RPC can not be forgotten in the SDK."""
    method = NAMES.get(rpc) or re.sub(r"(?<!^)(?=[A-Z])", "_", rpc).lower()
    assert method in public_methods(client)


def test_rpcs_are_found() -> None:
    """The test above looks at all services."""
    assert {"Embed", "LoadModel", "Check"} <= set(rpc_names())


def test_both_clients_have_the_same_methods() -> None:
    """Names, parameters and defaults are the same; only types may differ."""
    sync, asynchronous = public_methods(Client), public_methods(AsyncClient)
    assert sync.keys() == asynchronous.keys()
    for name, signature in sync.items():
        expected = [(p.name, p.kind, p.default) for p in signature.parameters.values()]
        actual = [(p.name, p.kind, p.default) for p in asynchronous[name].parameters.values()]
        assert actual == expected, name


def test_every_field_of_a_request_is_an_option() -> None:
    """A new field of EmbedRequest can not be forgotten in the SDK."""
    fields = {field.name for field in new_embed_request().DESCRIPTOR.fields} - NO_OPTIONS
    assert set(EmbedOptions.__annotations__) == fields
    assert set(inspect.signature(new_embed_request).parameters) == fields

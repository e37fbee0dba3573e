"""The protos: their generated stubs are fresh, and all that is in them is explained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import google.rpc
import grpc_tools
import pytest
from google.protobuf import descriptor_pb2
from grpc_tools import protoc

from scripts.generate_protos import PROTOS, generate

# Numbers in a descriptor's path: which list of its parent an element is in.
_FILE = descriptor_pb2.FileDescriptorProto
_MESSAGE, _ENUM, _SERVICE = 4, 5, 6
_FIELD, _NESTED, _NESTED_ENUM = 2, 3, 4
_VALUE, _METHOD = 2, 2


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stubs generated now."""
    folder = tmp_path_factory.mktemp("stubs")
    assert generate(folder)
    return folder


def stubs(folder: Path) -> dict[str, str]:
    files = (path for pattern in ("*_pb2*.py", "*_pb2*.pyi") for path in folder.rglob(pattern))
    return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in files}


def test_committed_stubs_are_what_the_protos_generate(fresh: Path) -> None:
    """Run `make protos` when this fails; no stub of a proto that is gone is left."""
    committed, expected = stubs(PROTOS), stubs(fresh)
    assert sorted(committed) == sorted(expected)
    stale = [name for name in expected if committed[name] != expected[name]]
    assert stale == []


def test_every_proto_has_stubs_and_type_stubs(fresh: Path) -> None:
    """Four files each: messages and services, both with types."""
    sources = [path.relative_to(PROTOS).with_suffix("") for path in PROTOS.rglob("*.proto")]
    assert sources
    for source in sources:
        for ending in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi"):
            assert (fresh / f"{source}{ending}").is_file()


Element = tuple[tuple[int, ...], str, str]
"""Path in the descriptor, kind, name."""


def elements(file: _FILE) -> Iterator[Element]:
    """All that a reader may ask about: messages, fields, enums, values, services, methods."""
    for number, message in enumerate(file.message_type):
        yield from message_elements(message, (_MESSAGE, number))
    for number, enum in enumerate(file.enum_type):
        yield from enum_elements(enum, (_ENUM, number), "")
    for number, service in enumerate(file.service):
        yield (_SERVICE, number), "service", service.name
        for at, method in enumerate(service.method):
            yield (_SERVICE, number, _METHOD, at), "rpc", f"{service.name}.{method.name}"


def message_elements(
    message: descriptor_pb2.DescriptorProto, path: tuple[int, ...]
) -> Iterator[Element]:
    yield path, "message", message.name
    for at, field in enumerate(message.field):
        yield (*path, _FIELD, at), "field", f"{message.name}.{field.name}"
    for at, enum in enumerate(message.enum_type):
        yield from enum_elements(enum, (*path, _NESTED_ENUM, at), message.name)
    for at, nested in enumerate(message.nested_type):
        if not nested.options.map_entry:
            yield from message_elements(nested, (*path, _NESTED, at))


def enum_elements(
    enum: descriptor_pb2.EnumDescriptorProto, path: tuple[int, ...], parent: str
) -> Iterator[Element]:
    name = f"{parent}.{enum.name}".removeprefix(".")
    yield path, "enum", name
    for at, value in enumerate(enum.value):
        yield (*path, _VALUE, at), "value", f"{name}.{value.name}"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[_FILE]:
    """Descriptors of our protos, comments included."""
    out = tmp_path_factory.mktemp("descriptors") / "set.bin"
    sources = [str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto")]
    status = protoc.main(
        [
            "protoc",
            f"--proto_path={PROTOS}",
            f"--proto_path={Path(grpc_tools.__file__).parent / '_proto'}",
            f"--proto_path={Path(google.rpc.__path__[0]).parents[1]}",
            "--include_source_info",
            f"--descriptor_set_out={out}",
            *sources,
        ]
    )
    assert status == 0
    return list(descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file)


def commented(file: _FILE) -> set[tuple[int, ...]]:
    return {
        tuple(location.path)
        for location in file.source_code_info.location
        if location.leading_comments.strip() or location.trailing_comments.strip()
    }


@pytest.mark.parametrize("kind", ["service", "rpc", "message", "field", "enum"])
def test_all_is_explained(files: list[_FILE], kind: str) -> None:
    """Whatever a caller calls, fills in or reads has a comment of its own.

    The request and the response of an rpc are explained by the rpc; an enum's value
    is left to its name where a comment would only repeat it.
    """
    silent = [
        name
        for file in files
        for path, each, name in elements(file)
        if each == kind and path not in commented(file)
    ]
    if kind == "message":
        silent = [name for name in silent if not name.endswith(("Request", "Response"))]
    assert silent == []


def test_every_enum_begins_with_unspecified(files: list[_FILE]) -> None:
    """Values carry their enum's name, and 0 is the one that nobody chose (buf's style)."""
    enums = [enum for file in files for enum in file.enum_type]
    assert enums
    for enum in enums:
        prefix = "".join(f"_{c}" if c.isupper() else c.upper() for c in enum.name)[1:] + "_"
        assert (enum.value[0].name, enum.value[0].number) == (f"{prefix}UNSPECIFIED", 0)
        assert all(value.name.startswith(prefix) for value in enum.value)

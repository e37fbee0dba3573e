"""Who may import whom: each layer only what is below it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SERVER, CLIENT = ROOT / "server" / "shoal_server", ROOT / "client" / "shoal_client"

# Top first: the folders and modules of the server as a request meets them. Members of
# one layer do not import each other.
LAYERS = (
    {"__main__"},
    {"cli"},
    {"app"},
    {"composition"},
    {"tuning"},
    {"api"},
    {"listing", "updating"},
    {
        "catalog",
        "embedder",
        "kept_settings",
        "kept_statistics",
        "labelling",
        "preloading",
        "profiling",
        "pulling",
        "registering",
        "reloading",
        "returning",
        "switching",
        "verifying",
    },
    {"embed_request", "loading", "placement"},
    {"load_source", "loaded_model"},
    {"batching"},
    {"inference", "residency"},
    {"registry"},
    {"runtime_settings"},
    {"settings_sources"},
    {"settings", "telemetry"},
    {"presets", "rate_limits", "statistics", "usage", "tallies", "lifecycle"},
    {"core"},
    {"deadlines", "errors"},
)
# Beside the server proper: what it takes to prepare a model. Only commands use it.
PREPARATION = "preparation"
PREPARATION_MAY_IMPORT = {"inference", "registry", "core", "errors"}
# Runs in the export environment, as a script; nothing may import it.
EXPORT_SCRIPT = SERVER / "preparation" / "export_script.py"

NEVER = {"torch", "transformers", "optimum", "sentence_transformers"}


def modules(package: Path) -> list[Path]:
    return sorted(package.rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Full names of all that a module imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            # `from package import module` names a module too.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(path: Path) -> str:
    """The folder or module of the server that a file belongs to."""
    return path.relative_to(SERVER).parts[0].removesuffix(".py")


def parts_imported(path: Path) -> set[str]:
    """The folders and modules of the server that a file imports, its own left out."""
    found = set()
    for name in imported(path):
        package, _, rest = name.partition(".")
        if package == "shoal_server":
            found.add(rest.split(".")[0])
    return found - {part_of(path)}


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_part_has_its_place() -> None:
    """A new folder or module is put into a layer before anything can be said of it."""
    placed = {PREPARATION, "__init__"}.union(*LAYERS)
    assert {part_of(path) for path in modules(SERVER)} == placed


@pytest.mark.parametrize("path", modules(SERVER), ids=ids)
def test_no_layer_reaches_up(path: Path) -> None:
    """A module imports what is below its layer, and its own folder."""
    part = part_of(path)
    if part == PREPARATION:
        allowed = PREPARATION_MAY_IMPORT
    elif part == "__init__":
        allowed = set()
    else:
        depth = next(depth for depth, layer in enumerate(LAYERS) if part in layer)
        allowed = set().union(*LAYERS[depth + 1 :])
        allowed |= {PREPARATION} if part == "cli" else set()
    assert parts_imported(path) - allowed == set()


def test_modules_of_a_folder_do_not_import_each_other_in_a_circle() -> None:
    """Each module can be read, and tested, with only those that it names before it."""
    graph = {}
    for path in modules(SERVER):
        name = ".".join(path.relative_to(SERVER.parent).with_suffix("").parts)
        graph[name] = set(imported_at_run_time(path))
    known = set(graph)
    left = {name: {each for each in names if each in known} for name, names in graph.items()}
    while ready := [name for name, names in left.items() if not names]:
        for name in ready:
            del left[name]
        for names in left.values():
            names.difference_update(ready)
    assert left == {}


def imported_at_run_time(path: Path) -> Iterator[str]:
    """As `imported`, as modules, without what only type checkers import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in for_types:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", modules(SERVER), ids=ids)
def test_the_server_imports_neither_the_client_nor_an_export_library(path: Path) -> None:
    """The runtime environment holds no PyTorch; the export script runs in one of its own."""
    forbidden = {"shoal_client"} | (set() if path == EXPORT_SCRIPT else NEVER)
    assert {name.split(".")[0] for name in imported(path)} & forbidden == set()


@pytest.mark.parametrize("path", modules(SERVER), ids=ids)
def test_nothing_imports_the_export_script(path: Path) -> None:
    """It is handed to another interpreter as a file."""
    assert not any("export_script" in name for name in imported(path))


@pytest.mark.parametrize("path", modules(CLIENT), ids=ids)
def test_the_client_imports_neither_the_server_nor_a_runtime(path: Path) -> None:
    """A client service installs no inference runtime."""
    forbidden = NEVER | {"shoal_server", "onnxruntime", "onnx", "tokenizers"}
    assert {name.split(".")[0] for name in imported(path)} & forbidden == set()

"""What looking up, changing and listing cost with a thousand models registered.

    python -m loadtests.registry_cost [--models 1000]

First in the server's own parts, without gRPC: the registry, the store on a real disk, the
repository's files. Then the same as calls to a running server, from this process, with the
time that it took to be ready. Medians, and the slowest of a hundred for what may wait for a
disk.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from structlog.testing import capture_logs

from loadtests.servers import ServerConfig, ServerUnderTest
from shoal.v1 import model_control_pb2 as pb
from shoal_client import AsyncClient
from shoal_server.api.listing import read_query
from shoal_server.api.model_control import write_model
from shoal_server.catalog import Catalog
from shoal_server.composition.hardware import find_hardware
from shoal_server.composition.instruments import make_instruments
from shoal_server.composition.models import Models, open_models
from shoal_server.core import ModelRef, Pooling
from shoal_server.labelling import Labeller
from shoal_server.listing import select
from shoal_server.registry.aliases import Target, new_alias
from shoal_server.registry.manifest import (
    GRAPH_FILE,
    MODEL_FILE,
    TOKENIZER_FILE,
    VERSION_FILE,
    ModelManifest,
    Source,
    VersionManifest,
)
from shoal_server.registry.remembered import alias_change, pin_change
from shoal_server.settings import Settings

_ROUNDS = 100
_LOOKUPS = 10_000
_LONG_AGO_S = 1_000_000_000
_FILTERED = pb.ListModelsRequest(
    states=[pb.MODEL_STATE_REGISTERED],
    tags=["bench"],
    text="subject 5",
    dimensions=256,
    languages=["en"],
    precision="fp32",
    order_by=pb.MODEL_ORDER_FILE_BYTES,
    page_size=50,
)

Work = Callable[[int], Awaitable[object]]


def make_models(root: Path, count: int, *, prefix: str = "model") -> None:
    """Prepare models that have everything but weights, as if long ago."""
    for number in range(count):
        name = f"{prefix}-{number:04}"
        folder = root / name / "1"
        folder.mkdir(parents=True)
        for file_name in (GRAPH_FILE, TOKENIZER_FILE):
            (folder / file_name).write_bytes(b"x" * 100)
        # No two are the same text, as no two real ones are.
        (folder / VERSION_FILE).write_text(_manifest(number).to_toml())
        about = ModelManifest(
            description=f"{name} embeds texts of subject {number % 37}", license="mit"
        )
        (folder.parent / MODEL_FILE).write_text(about.to_toml())
        # What is new might be written to again without showing it.
        for path in (*folder.parent.rglob("*"), folder.parent):
            os.utime(path, (0, _LONG_AGO_S))
    os.utime(root, (0, _LONG_AGO_S))


def _manifest(number: int) -> VersionManifest:
    return VersionManifest(
        dimensions=384,
        matryoshka_dimensions=(128, 256),
        max_tokens=512,
        vocabulary_size=30522,
        pooling=Pooling.MEAN,
        normalized=True,
        languages=("en", "de"),
        prompts={"query": "query: ", "passage": "passage: "},
        created_at="2026-01-01T00:00:00Z",
        source=Source(kind="local", location="loadtests", exported=True),
        files={GRAPH_FILE: f"{number:064x}", TOKENIZER_FILE: "0" * 64},
    )


async def measure(root: Path, count: int) -> None:
    """Print what each operation takes in the server's parts."""
    settings = Settings(model_dir=root, default_model="model-0000")
    async with AsyncExitStack() as exits:
        exits.enter_context(capture_logs())  # so that the lines below stand alone
        models = await open_models(
            make_instruments(settings), find_hardware(settings), lambda _: None, exits
        )
        await _measure_parts(models, root, count)


async def _measure_parts(models: Models, root: Path, count: int) -> None:
    registry, store, catalog = models.registry, models.store, models.catalog
    labeller = Labeller(registry, store, models.states)
    names = [f"model-{number:04}" for number in range(count)]

    began_s = time.perf_counter()
    await catalog.listed()
    print(f"first look at {count} models: {(time.perf_counter() - began_s) * 1e3:.0f} ms")
    versions = [await registry.resolve(name) for name in names]
    began_s = time.perf_counter()
    for number in range(_LOOKUPS):
        registry.meanings.known(names[number % count])
    print(f"lookup: {(time.perf_counter() - began_s) / _LOOKUPS * 1e6:.2f} µs")

    async def alias(number: int) -> None:
        made = new_alias(f"alias-{number}", [Target(versions[number].key)], time.time())
        await store.write(alias_change(made.name, made))
        registry.point(made, [versions[number]])

    async def pin(number: int) -> None:
        await store.write(pin_change(names[number], "1"))
        registry.pin(names[number], "1", versions[number])

    async def tag(number: int) -> None:
        await labeller.tag(str(ModelRef(names[number])), ["bench", f"t{number % 3}"], [])

    make_models(root, _ROUNDS, prefix="new")
    await _report(
        "registration of a new model, read and checked",
        lambda number: models.registrar.register(f"new-{number:04}"),
    )
    await _report(
        "registration of one that is known, read again",
        lambda number: models.registrar.register(names[number]),
    )
    await _report(
        "deregistration, written to disk",
        lambda number: models.registrar.deregister(f"new-{number:04}"),
    )
    await _report("update: a tag, found on disk first", tag)
    await _report("update: a pinned version", pin)
    await _report("update: an alias", alias)
    await catalog.listed()
    await _report(
        "ListModels, one page of 50", _listing(catalog, pb.ListModelsRequest(page_size=50))
    )
    await _report("ListModels, filtered and sorted", _listing(catalog, _FILTERED))


def _listing(catalog: Catalog, request: pb.ListModelsRequest) -> Work:
    async def run(_: int) -> None:
        page = select(await catalog.listed(), read_query(request))
        found = [write_model(each) for each in await catalog.describe(page.models)]
        pb.ListModelsResponse(models=found).SerializeToString()

    return run


async def measure_server(root: Path, count: int) -> None:
    """Print what the same calls to a server take, and how long it takes to be ready."""
    config = ServerConfig("registry cost", {"preload": "none", "default_model": "model-0000"})
    with ServerUnderTest(config, root) as server:
        print(f"start to ready with {count} models: {server.start_s * 1e3:.0f} ms")
        make_models(root, _ROUNDS, prefix="late")
        async with AsyncClient(server.address) as client:
            await _measure_calls(client)


async def _measure_calls(client: AsyncClient) -> None:
    async def get(number: int) -> object:
        return await client.get_model(f"model-{number:04}")

    async def register(number: int) -> object:
        return await client.register_model(f"late-{number:04}")

    async def deregister(number: int) -> None:
        await client.deregister_model(f"late-{number:04}")

    async def tag(number: int) -> object:
        return await client.update_tags(f"model-{number:04}", add=["bench"])

    async def find(_: int) -> object:
        return await client.list_models(
            "subject 5",
            states=["registered"],
            tags=["bench"],
            dimensions=256,
            languages=["en"],
            precision="fp32",
            order_by="file_bytes",
        )

    await client.list_models("nothing has this")  # the first look reads everything
    await _report("call: GetModel", get)
    await _report("call: RegisterModel", register)
    await _report("call: DeregisterModel", deregister)
    await _report("call: UpdateTags", tag)
    await _report("call: ListModels, filtered and sorted", find)


async def _report(what: str, work: Work) -> None:
    times_ms = []
    for number in range(_ROUNDS):
        began_s = time.perf_counter()
        await work(number)
        times_ms.append((time.perf_counter() - began_s) * 1e3)
    print(f"{what}: {statistics.median(times_ms):.3f} ms, at most {max(times_ms):.3f} ms")


def main() -> None:
    """Make models in a folder of their own, measure, remove them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=1000)
    count = parser.parse_args().models
    for part in (measure, measure_server):
        with tempfile.TemporaryDirectory() as folder:
            make_models(Path(folder), count)
            asyncio.run(part(Path(folder), count))


if __name__ == "__main__":
    main()

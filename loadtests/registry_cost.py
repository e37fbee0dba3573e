"""What looking up, changing and listing cost with a thousand models registered.

    python -m loadtests.registry_cost [--models 1000]

In the server's process, without gRPC: the registry, the store on a real disk, the
repository's files. Medians, and the slowest of a hundred for what may wait for a disk.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

from shoal.v1 import model_control_pb2 as pb
from shoal_server.api.listing import read_query
from shoal_server.catalog import Catalog
from shoal_server.core import ModelRef, Pooling
from shoal_server.labelling import Labeller
from shoal_server.listing import select
from shoal_server.placement import Placement
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
from shoal_server.registry.registry import Registry
from shoal_server.registry.remembered import alias_change, pin_change
from shoal_server.registry.repository import ModelRepository
from shoal_server.registry.store import STATE_FILE, RecordStore
from shoal_server.residency.pool import SessionPool

_ROUNDS = 100
_LOOKUPS = 10_000
_LONG_AGO_S = 1_000_000_000


class _EmptyPool:
    """A pool with nothing in memory, as the catalog asks it."""

    def get(self, _: object) -> None:
        return None

    failure = departure = idle_left_s = get


def make_models(root: Path, count: int) -> None:
    """Prepare models that have everything but weights."""
    manifest = VersionManifest(
        dimensions=384,
        matryoshka_dimensions=(128, 256),
        max_tokens=512,
        vocabulary_size=30522,
        pooling=Pooling.MEAN,
        normalized=True,
        created_at="2026-01-01T00:00:00Z",
        source=Source(kind="local", location="loadtests", exported=True),
        files={GRAPH_FILE: "0" * 64, TOKENIZER_FILE: "0" * 64},
    ).to_toml()
    for number in range(count):
        folder = root / f"model-{number:04}" / "1"
        folder.mkdir(parents=True)
        for file_name in (GRAPH_FILE, TOKENIZER_FILE):
            (folder / file_name).write_bytes(b"x" * 100)
        (folder / VERSION_FILE).write_text(manifest)
        about = ModelManifest(description=f"embeds texts of subject {number % 37}", license="mit")
        (folder.parent / MODEL_FILE).write_text(about.to_toml())
    # As if made long ago: what is new might be written to again without showing it.
    for path in (root, *root.rglob("*")):
        os.utime(path, (0, _LONG_AGO_S))


async def measure(root: Path, count: int) -> None:
    """Print what each operation takes."""
    store = await RecordStore.open(root / STATE_FILE)
    registry = Registry(ModelRepository(root), "model-0000")
    catalog = Catalog(registry, cast(SessionPool[Any], _EmptyPool()), cast(Placement, None))
    labeller = Labeller(registry, store)
    names = [f"model-{number:04}" for number in range(count)]

    began_s = time.perf_counter()
    await catalog.listed()
    print(f"first look at {count} models: {(time.perf_counter() - began_s) * 1e3:.0f} ms")
    began_s = time.perf_counter()
    versions = [await registry.resolve(name) for name in names]
    register_ms = (time.perf_counter() - began_s) / count * 1e3
    print(f"registration (the first request for a name reads it): {register_ms:.3f} ms each")

    began_s = time.perf_counter()
    for number in range(_LOOKUPS):
        registry.known(names[number % count])
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

    await _report("update: an alias", alias)
    await _report("update: a pinned version", pin)
    await _report("update: a tag, found on disk first", tag)
    await catalog.listed()
    await _report(
        "ListModels, one page of 50", _listing(catalog, pb.ListModelsRequest(page_size=50))
    )
    filtered = pb.ListModelsRequest(
        states=[pb.MODEL_STATE_UNLOADED],
        tags=["bench"],
        text="subject 5",
        dimensions=256,
        order_by=pb.MODEL_ORDER_FILE_BYTES,
        page_size=50,
    )
    await _report("ListModels, filtered and sorted", _listing(catalog, filtered))
    await store.close()


def _listing(catalog: Catalog, request: pb.ListModelsRequest) -> Callable[[int], Awaitable[None]]:
    async def run(_: int) -> None:
        page = select(await catalog.listed(), read_query(request))
        await catalog.describe(page.models)

    return run


async def _report(what: str, work: Callable[[int], Awaitable[None]]) -> None:
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
    with tempfile.TemporaryDirectory() as folder:
        make_models(Path(folder), count)
        asyncio.run(measure(Path(folder), count))


if __name__ == "__main__":
    main()

"""What lies on disk: the model repository, the records beside it, packed weights."""

from __future__ import annotations

from contextlib import AsyncExitStack

from shoal_server.composition.start_error import StartError
from shoal_server.inference.packed import PackedCache
from shoal_server.registry.repository import ModelRepository
from shoal_server.registry.store import STATE_FILE, RecordStore, StoreUnreadable
from shoal_server.settings import Settings


async def open_store(
    settings: Settings, repository: ModelRepository, exits: AsyncExitStack
) -> RecordStore:
    """The records that outlast a restart; `exits` closes them.

    Raises:
        StartError: The file can not be used.
    """
    try:
        store = await RecordStore.open(settings.state_file or repository.root / STATE_FILE)
    except StoreUnreadable as error:
        raise StartError(str(error)) from error
    exits.push_async_callback(store.close)
    return store


def packed_cache(settings: Settings, repository: ModelRepository) -> PackedCache | None:
    """Where packed weights are kept; None: nowhere."""
    if settings.packed_cache_bytes == 0:
        return None
    root = settings.packed_cache_dir or repository.root / ".packed"
    return PackedCache(
        root, settings.packed_cache_bytes, trust_signatures=settings.trust_file_times
    )

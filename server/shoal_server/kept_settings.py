"""Changed settings that the server has again after a restart.

They are records of the store and stronger than every other source: whoever wants the
configured value back says so with UpdateSettings.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog

from shoal_server.errors import FailedPrecondition, ShoalError
from shoal_server.registry.store import Change, RecordStore
from shoal_server.registry.whole import WholeTasks
from shoal_server.runtime_settings import RuntimeSettings

log = structlog.get_logger(__name__)

_KIND = "setting"


class KeptSettings:
    """Changes settings, and keeps those that are to be kept. On the event loop.

    Attributes:
        names: Of the settings that are kept.
    """

    def __init__(self, runtime: RuntimeSettings, store: RecordStore) -> None:
        """Wire it.

        Args:
            runtime: The settings; those that may change are known.
            store: Keeps records.
        """
        self.runtime = runtime
        self.names: set[str] = set()
        self._store = store
        # Written first, then made: another change must not come between.
        self._changing = asyncio.Lock()
        self._tasks = WholeTasks()

    def restore(self) -> None:
        """Make the changes that were kept; those that make no sense any more are logged."""
        texts = {
            name: str(record.get("value")) for name, record in self._store.records(_KIND).items()
        }
        if self._restored(texts):
            return
        # One by one, and again: one may go together with another only once that is made.
        while made := [name for name, text in texts.items() if self._restored({name: text})]:
            texts = {name: text for name, text in texts.items() if name not in made}
        for name, text in texts.items():
            log.error("setting_left_out", setting=name, value=text)

    async def update(self, texts: Mapping[str, str], *, keep: bool) -> None:
        """Change settings.

        Args:
            texts: As `RuntimeSettings.update` takes them.
            keep: Over restarts, too; what is as configured is no longer kept then.

        Raises:
            ShoalError: One of them can not be changed, or not be kept; none is.
        """
        async with self._changing:
            await self._tasks.finish(self._update(texts, keep))

    async def _update(self, texts: Mapping[str, str], keep: bool) -> None:
        if keep:
            await self._keep(texts)
        self.runtime.update(texts)

    async def _keep(self, texts: Mapping[str, str]) -> None:
        after, configured = self.runtime.check(texts), self.runtime.at_start
        if self._store.problem:
            raise FailedPrecondition(f"settings can not be kept: {self._store.problem}")
        kept = {name for name in texts if getattr(after, name) != getattr(configured, name)}
        await self._store.write(
            *(Change(_KIND, name, {"value": texts[name]} if name in kept else None)
              for name in texts)
        )  # fmt: skip
        self.names = (self.names - set(texts)) | kept

    def _restored(self, texts: Mapping[str, str]) -> bool:
        try:
            self.runtime.update(texts)
        except ShoalError:
            return False
        self.names |= set(texts)
        return True

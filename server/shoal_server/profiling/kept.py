"""The profiles that a server keeps: the last one of each setup, over restarts.

One repository may be served by machines of different kinds, one after the other or from
copies; each finds those that were made on its like.
"""

from __future__ import annotations

import structlog
from pydantic import TypeAdapter, ValidationError

from shoal_server.core import ModelKey
from shoal_server.errors import NotPersisted
from shoal_server.profiling.profile import Profile, Setup
from shoal_server.registry.store import Change, RecordStore
from shoal_server.registry.whole import WholeTasks

log = structlog.get_logger(__name__)

_KIND = "profile"
# Of one version of a model; the oldest goes. A machine makes one for each precision and
# device, and others after an upgrade of the runtime.
_MOST = 8
_RECORD = TypeAdapter(Profile)


class KeptProfiles:
    """Profiles by setup. Belongs to the event loop's thread."""

    def __init__(self, store: RecordStore) -> None:
        """Take over what is stored; what makes no sense is left out and logged."""
        self._store = store
        self._tasks = WholeTasks()
        self._profiles: dict[str, Profile] = {}
        for name, record in store.records(_KIND).items():
            try:
                self._profiles[name] = _RECORD.validate_python(record)
            except ValidationError as error:
                # There may be one for each number of it.
                first = error.errors()[0]
                what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
                log.error("record_left_out", kind=_KIND, key=name, error=what)

    def get(self, setup: Setup) -> Profile | None:
        """The one of `setup`, where there is one."""
        return self._profiles.get(_name(setup))

    def of(self, key: ModelKey) -> list[Profile]:
        """All of a version, in whatever setup, the oldest first."""
        found = [each for each in self._profiles.values() if each.setup.key == key]
        return sorted(found, key=lambda each: each.measured_at_s)

    async def keep(self, profile: Profile) -> str:
        """Keep a profile in place of the one of the same setup.

        Cancelling the caller does not undo it.

        Returns:
            Why it is lost when the server ends; empty: it is on disk.
        """
        name = _name(profile.setup)
        self._profiles[name] = profile
        changes = [Change(_KIND, name, _RECORD.dump_python(profile, mode="json"))]
        for each in self.of(profile.setup.key)[:-_MOST]:
            oldest = _name(each.setup)
            del self._profiles[oldest]
            changes.append(Change(_KIND, oldest, None))
        try:
            await self._tasks.finish(self._store.write(*changes))
        except NotPersisted as error:
            return error.message
        return self._store.problem


def _name(setup: Setup) -> str:
    return f"{setup.key}/{setup.id}"

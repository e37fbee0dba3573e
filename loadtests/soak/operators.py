"""Those who change things while the callers call: one operation after the other, at random.

Each keeps the scene's timeline true: what names mean, and what goes on that may make
requests fail.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager

from google.protobuf import duration_pb2, timestamp_pb2
from google.protobuf.message import Message

from loadtests.soak.control import Control
from loadtests.soak.documented import Gone, Refusing, Unloading
from loadtests.soak.names import Names
from loadtests.soak.scene import Scene
from loadtests.soak.upkeep import Upkeep
from loadtests.soak.versions import DEFAULT_MODEL, VERSIONS, keys
from shoal.v1 import model_control_pb2 as pb
from shoal.v1 import settings_pb2, statistics_pb2, updates_pb2, versions_pb2

LIVE, CANARY, SPARE = "live", "canary", "spare"
# Besides the one that is always asked for.
_POPULAR = 2
_MOST_PAUSE_S = 0.4
# How long a version is refused, an alias is gone, a model is pinned, at most.
_MOST_HOLD_S = 0.5
_MOST_WEIGHT = 9
_TRIES = 5
_LONG_AGO = timestamp_pb2.Timestamp(seconds=1_600_000_000)


class Operator:
    """One who manages. Draws from a seed of its own."""

    def __init__(self, scene: Scene, control: Control, names: Names, seed: str) -> None:
        self._scene = scene
        self._control = control
        self._names = names
        self._draw = random.Random(seed)
        self.done: Counter[str] = Counter()
        """Operations, by name."""
        self._operations: Mapping[Callable[[], Awaitable[None]], int] = {
            self.change_fashion: 4,
            self.switch_live: 4,
            self.switch_canary: 3,
            self.roll_back: 3,
            self.set_policy: 2,
            self.remake_spare: 1,
            self.load: 2,
            self.unload: 3,
            self.unload_by_force: 1,
            self.reload: 2,
            self.pin: 2,
            self.deprecate: 1,
            self.refuse: 1,
            self.tag: 1,
            self.change_settings: 1,
            self.look: 2,
            **Upkeep(scene, control, names, self._draw).operations,
        }

    async def set_up(self) -> None:
        """Give every name a meaning."""
        for key in keys():
            self._names.always(key, key)
        self._names.always("east", "east@1")
        await self.switch(LIVE, {"north@1": 1})
        await self.switch(CANARY, {"north@1": 3, "north@2": 1})
        await self.switch(SPARE, {"south@1": 1})
        for name in ("north", "south"):
            await self.pin_version(name, VERSIONS[name][0])
        await self.change_fashion()

    async def operate(self, until_s: float) -> None:
        """One operation after the other, until a moment on the monotonic clock."""
        operations, weights = [*self._operations], [*self._operations.values()]
        while time.monotonic() < until_s:
            (operation,) = self._draw.choices(operations, weights)
            await operation()
            self.done[operation.__name__] += 1
            await asyncio.sleep(self._draw.uniform(0, _MOST_PAUSE_S))

    # -- what is asked for -------------------------------------------------------

    async def change_fashion(self) -> None:
        """Let callers ask for other names, so that what they asked for falls idle."""
        names = [CANARY, SPARE, "", *VERSIONS, *keys()]
        self._scene.popular = [LIVE] * _POPULAR + self._draw.sample(names, _POPULAR)

    # -- what names mean ---------------------------------------------------------

    async def switch_live(self) -> None:
        """The alias that most ask for, to one version."""
        await self.switch(LIVE, {self._draw.choice(keys()): 1})

    async def switch_canary(self) -> None:
        """One or two versions behind an alias, by weight."""
        targets = self._draw.sample(keys(), self._draw.randint(1, 2))
        await self.switch(CANARY, {each: self._draw.randint(1, _MOST_WEIGHT) for each in targets})

    async def switch(self, alias: str, targets: Mapping[str, int]) -> None:
        """Let an alias stand for versions, by weight."""
        request = self._switch_request(alias, targets)
        async with self._names.changing(alias, targets) as change:
            if await self._control.call("SwitchModel", request):
                change.meant = [*targets]

    async def roll_back(self) -> None:
        """What an alias meant before, or at some revision of its history."""
        alias = self._draw.choice((LIVE, CANARY))
        async with self._names.changing(alias) as change:
            request = versions_pb2.RollbackModelRequest(alias=alias)
            answer = await self._control.call("RollbackModel", request)
            if answer:
                change.meant = [each.model for each in answer.alias.targets]

    async def set_policy(self) -> None:
        """The version that a bare name means."""
        name = self._draw.choice(("north", "south"))
        await self.pin_version(name, self._draw.choice(("", *VERSIONS[name])))

    async def pin_version(self, name: str, version: str) -> None:
        """Let a bare name mean a version; empty: the latest."""
        meant = f"{name}@{version or VERSIONS[name][-1]}"
        also = "" if name == DEFAULT_MODEL else None
        async with self._names.changing(name, [meant], also=also) as change:
            request = versions_pb2.SetVersionPolicyRequest(model=name, version=version)
            if await self._control.call("SetVersionPolicy", request):
                change.meant = [meant]

    async def remake_spare(self) -> None:
        """Delete an alias, and make it again."""
        target = self._draw.choice(keys())
        with self._going_on(Gone(SPARE)):
            async with self._names.changing(SPARE, [target]) as change:
                await self._control.call(
                    "DeleteAlias", versions_pb2.DeleteAliasRequest(alias=SPARE)
                )
                await self._hold()
                request = self._switch_request(SPARE, {target: 1})
                for _ in range(_TRIES):  # there may be no room, or no such model just now
                    if await self._control.call("SwitchModel", request):
                        change.meant = [target]
                        return
                    await self._hold()
        self._scene.ledger.problems[f"{SPARE!r} was deleted and could not be made again"] += 1

    # -- what is in memory -------------------------------------------------------

    async def load(self) -> None:
        """Bring a version into memory."""
        await self._control.call("LoadModel", pb.LoadModelRequest(model=self._version()))

    async def unload(self) -> None:
        """Take a version out of memory, after the requests that use it."""
        await self._control.call("UnloadModel", pb.UnloadModelRequest(model=self._version()))

    async def unload_by_force(self) -> None:
        """Take a version out of memory; requests that use it may fail."""
        after = duration_pb2.Duration(nanos=self._draw.randrange(50_000_000))
        request = pb.UnloadModelRequest(model=self._version(), force_after=after)
        with self._going_on(Unloading()):
            await self._control.call("UnloadModel", request)

    async def reload(self) -> None:
        """Have a version's files read again, under the load."""
        await self._control.call(
            "ReloadModel", updates_pb2.ReloadModelRequest(model=self._version())
        )

    async def pin(self) -> None:
        """Keep a version in memory for a while."""
        version = self._version()
        await self._control.call("PinModel", pb.PinModelRequest(model=version, pin=True))
        await self._hold()
        await self._control.call("PinModel", pb.PinModelRequest(model=version, pin=False))

    # -- what is said of it ------------------------------------------------------

    async def deprecate(self) -> None:
        """Say that a version should not be used any longer, and take it back."""
        version, other = self._draw.sample(keys(), 2)
        await self._deprecate(version, versions_pb2.Deprecation(replacement=other))
        await self._hold()
        await self._deprecate(version, None)

    async def refuse(self) -> None:
        """The same with a date that is past: requests for the version are refused."""
        version = self._version()
        with self._going_on(Refusing()):
            await self._deprecate(version, versions_pb2.Deprecation(refuse_after=_LONG_AGO))
            await self._hold()
            await self._deprecate(version, None)

    async def tag(self) -> None:
        """Give a version a tag and take others away."""
        tags = [f"tag-{number}" for number in range(4)]
        added = self._draw.choice(tags)
        tags.remove(added)
        await self._control.call(
            "UpdateTags",
            versions_pb2.UpdateTagsRequest(model=self._version(), add=[added], remove=tags),
        )

    async def change_settings(self) -> None:
        """Of idle time and of batches."""
        settings = {
            "ram_idle_s": self._draw.choice(("0.3", "1800")),
            "max_batch_items": self._draw.choice(("8", "32")),
            "max_wait_ms": self._draw.choice(("0", "5")),
        }
        await self._control.call(
            "UpdateSettings", settings_pb2.UpdateSettingsRequest(settings=settings)
        )

    async def look(self) -> None:
        """Ask for what there is to know."""
        requests: Mapping[str, Message] = {
            "GetModel": pb.GetModelRequest(model=self._version()),
            "ListModels": pb.ListModelsRequest(),
            "ListAliases": versions_pb2.ListAliasesRequest(),
            "GetStatistics": statistics_pb2.GetStatisticsRequest(),
            "DiscoverModels": versions_pb2.DiscoverModelsRequest(),
        }
        for method, request in requests.items():
            await self._control.call(method, request)

    # -- how -------------------------------------------------------------------

    def _version(self) -> str:
        return self._draw.choice(keys())

    async def _deprecate(self, version: str, how: versions_pb2.Deprecation | None) -> None:
        request = versions_pb2.DeprecateModelRequest(model=version, deprecation=how)
        await self._control.call("DeprecateModel", request)

    def _switch_request(
        self, alias: str, targets: Mapping[str, int]
    ) -> versions_pb2.SwitchModelRequest:
        return versions_pb2.SwitchModelRequest(
            alias=alias,
            targets=[
                versions_pb2.AliasTarget(model=each, weight=weight)
                for each, weight in targets.items()
            ],
            keep_previous=self._draw.random() < 0.5,
        )

    async def _hold(self) -> None:
        await asyncio.sleep(self._draw.uniform(0, _MOST_HOLD_S))

    @contextmanager
    def _going_on(self, fact: Hashable) -> Iterator[None]:
        with self._scene.timeline.during(fact, clock=time.monotonic):
            yield

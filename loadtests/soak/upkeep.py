"""Operations on models as such: verify, profile, update, deregister and register again."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager

from loadtests.soak.callers import LEAST_COSINE
from loadtests.soak.control import Control
from loadtests.soak.documented import Deregistering, Gone
from loadtests.soak.names import Names
from loadtests.soak.scene import Scene
from loadtests.soak.versions import DEFAULT_MODEL, VERSIONS, keys
from shoal.v1 import model_control_pb2 as pb
from shoal.v1 import profile_pb2, updates_pb2, verification_pb2

_BATCH_SIZES, _LENGTHS, _RUNS, _MANY_RUNS = (1, 4), (8, 32), 3, 100
# Of profiles, how many are left as soon as they have begun.
_LEFT = 0.3
# Nobody can do without the default model.
_DISPENSABLE = tuple(name for name in VERSIONS if name != DEFAULT_MODEL)
# How long a model is gone, at most.
_MOST_GONE_S = 0.5


class Upkeep:
    """What an operator does to models. Draws from the operator's seed."""

    def __init__(self, scene: Scene, control: Control, names: Names, draw: random.Random) -> None:
        self._scene = scene
        self._control = control
        self._names = names
        self._draw = draw
        self.operations: Mapping[Callable[[], Awaitable[None]], int] = {
            self.verify: 1,
            self.profile: 1,
            self.update: 2,
            self.deregister: 1,
        }
        """With their weights."""

    async def verify(self) -> None:
        """Compare a version with the vectors that are kept with it, under the load."""
        version = self._draw.choice(keys())
        request = verification_pb2.VerifyModelRequest(model=version)
        answer = await self._control.call("VerifyModel", request)
        for each in answer.results if answer else ():
            self._expect(f"{each.model}@{each.version}" == version, f"{version}: verified another")
            accuracy = each.accuracy
            is_right = accuracy.passed and accuracy.least_cosine >= LEAST_COSINE
            self._expect(is_right, f"VerifyModel of {version}: {accuracy.problem or 'not passed'}")

    async def profile(self) -> None:
        """Measure a few batches of a version beside the load, or leave at once."""
        version = self._draw.choice(keys())
        request = profile_pb2.ProfileModelRequest(
            model=version, batch_sizes=_BATCH_SIZES, lengths=_LENGTHS, runs=_RUNS
        )
        if self._draw.random() < _LEFT:
            request.runs = _MANY_RUNS
            await self._control.stream("ProfileModel", request, most=1)
            return
        answers = await self._control.stream("ProfileModel", request)
        if answers is None:
            return
        profile, cells = answers[-1].profile, len(_BATCH_SIZES) * len(_LENGTHS)
        is_whole = f"{profile.model}@{profile.version}" == version and len(profile.cells) == cells
        self._expect(
            is_whole, f"ProfileModel of {version}: {len(profile.cells)} of {cells} batches"
        )
        self._expect(len(answers) == cells + 2, f"ProfileModel: {len(answers)} answers")

    async def update(self) -> None:
        """Let a bare name mean its newest version, which it does unless it is pinned."""
        name = self._draw.choice([*VERSIONS])
        newest = f"{name}@{VERSIONS[name][-1]}"
        also = "" if name == DEFAULT_MODEL else None
        request = updates_pb2.UpdateModelRequest(
            model=name, source=updates_pb2.UPDATE_SOURCE_REPOSITORY
        )
        async with self._names.changing(name, [newest], also=also) as change:
            answer = await self._control.call("UpdateModel", request)
            if answer is None:
                return
            self._scene.ledger.updates += answer.updated
            change.meant = [f"{name}@{answer.after}"]
        self._expect(change.meant == [newest], f"UpdateModel of {name}: now {change.meant}")

    async def deregister(self) -> None:
        """Let the server know a model no longer, and then again; refused for an alias's."""
        name = self._draw.choice(_DISPENSABLE)
        async with self._names.changing(name, ()):  # one at a time; it means what it meant
            with (
                self._going_on(Deregistering()),
                self._going_on(Gone(name)),
                self._going_on(*(Gone(f"{name}@{version}") for version in VERSIONS[name])),
            ):
                out = pb.DeregisterModelRequest(model=name)
                if await self._control.call("DeregisterModel", out) is None:
                    return
                await asyncio.sleep(self._draw.uniform(0, _MOST_GONE_S))
                back = pb.RegisterModelRequest(model=name)
                answer = await self._control.call("RegisterModel", back)
        self._expect(answer is not None and answer.added, f"{name} was not registered again")

    def _expect(self, is_so: bool, otherwise: str) -> None:
        if not is_so:
            self._scene.ledger.problems[otherwise] += 1

    @contextmanager
    def _going_on(self, *facts: Hashable) -> Iterator[None]:
        with self._scene.timeline.during(*facts, clock=time.monotonic):
            yield

"""Those who ask for vectors, one request after the other, and look at every answer."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence

import numpy as np

from loadtests.soak.documented import is_documented
from loadtests.soak.faces import Face, RefusedError, UnaryFace, open_stream
from loadtests.soak.scene import Means, Scene
from shoal.v1 import embed_pb2 as pb
from shoal.v1 import embed_pb2_grpc

LEAST_COSINE = 0.99999
_TEXTS_PER_REQUEST = 6
_REQUESTS_PER_STREAM = 50
# Of requests: those with a routing key, and those that say how long the model stays.
_KEYED, _KEPT_ALIVE = 0.3, 0.02
_KEYS = 100
# How long somebody who was refused stays away; RetryInfo says as much.
_AWAY_S = 1.0


class Caller:
    """One who asks. Draws from a seed of its own."""

    def __init__(self, scene: Scene, stub: embed_pb2_grpc.EmbedServiceAsyncStub, seed: str) -> None:
        self._scene = scene
        self._stub = stub
        self._draw = random.Random(seed)

    async def call(self, until_s: float) -> None:
        """Ask, each request a call, until a moment on the monotonic clock."""
        face = UnaryFace(self._stub, self._scene.ledger)
        while time.monotonic() < until_s:
            await self.ask_once(face)

    async def stream(self, until_s: float) -> None:
        """The same over one EmbedStream after the other."""
        while time.monotonic() < until_s:
            async with open_stream(self._stub, self._scene.ledger) as face:
                for _ in range(_REQUESTS_PER_STREAM):
                    await self.ask_once(face)
                    if time.monotonic() >= until_s:
                        break

    async def ask_once(self, face: Face, name: str | None = None) -> None:
        """One request, of a popular name or a given one; counts it and looks at the answer."""
        scene, draw = self._scene, self._draw
        name = draw.choice(scene.popular) if name is None else name
        picked = draw.choices(range(len(scene.texts)), k=draw.randint(1, _TEXTS_PER_REQUEST))
        request = pb.EmbedRequest(model=name, texts=[scene.texts[at] for at in picked])
        if draw.random() < _KEYED:
            request.routing_key = str(draw.randrange(_KEYS))
        if draw.random() < _KEPT_ALIVE:
            request.keep_alive_s = draw.choice((0.0, 0.5, 60.0))
        asked_s = time.monotonic()
        try:
            answer = await face.ask(request)
        except RefusedError as error:
            scene.ledger.failed[error.failure] += 1
            now_s = time.monotonic()
            if not is_documented(error.failure, name, scene.timeline, asked_s, now_s):
                scene.ledger.problems[f"Embed of {name!r}: {error}"] += 1
            await _sleep_until(now_s + _AWAY_S * draw.random())
            return
        version = f"{answer.model}@{answer.version}"
        scene.ledger.answered[version] += 1
        scene.ledger.items[version] += len(picked)
        scene.ledger.tokens[version] += sum(answer.token_counts)
        problem = judge(answer, name, picked, scene, asked_s, time.monotonic())
        if problem:
            scene.ledger.problems[problem] += 1


def judge(
    answer: pb.EmbedResponse,
    name: str,
    picked: Sequence[int],
    scene: Scene,
    asked_s: float,
    answered_s: float,
) -> str:
    """What is wrong with an answer, in words; empty when nothing is.

    Args:
        answer: Whatever it says.
        name: That was asked for.
        picked: The texts that were, by place.
        scene: With the vectors, and what names meant when.
        asked_s: When it was asked.
        answered_s: When it was answered.
    """
    version = f"{answer.model}@{answer.version}"
    if version not in scene.vectors:
        return f"{name!r} was answered by {version}, which is none of ours"
    if not scene.timeline.held(Means(name, version), asked_s, answered_s):
        return f"{name!r} was answered by {version}, which it did not mean"
    rows = np.frombuffer(answer.vectors, "<f4")
    wanted = scene.vectors[version][list(picked)]
    if rows.size != wanted.size:
        return f"{version}: {rows.size} numbers for {len(picked)} texts"
    rows = rows.reshape(wanted.shape)
    cosines = (rows * wanted).sum(axis=1) / np.linalg.norm(rows, axis=1)
    if not cosines.min() >= LEAST_COSINE:  # NaN is not
        return f"{version}: cosine {cosines.min():.6f} to its vectors"
    return ""


async def _sleep_until(at_s: float) -> None:
    await asyncio.sleep(max(0.0, at_s - time.monotonic()))

"""Models loaded, pinned, unloaded by force and used, all at once by many."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
from google.protobuf import duration_pb2

from shoal.v1 import model_control_pb2 as control_pb
from tests.running import RunningServer
from tests.server.api.calls import TIMEOUT_S, Connection, refusal, rows, unharmed
from tests.tiny_model import TinyModel, make_tiny_model

NAMES = ("a", "b", "c")
CALLERS, ROUNDS = 16, 25


class Caller:
    """Does one thing after another, drawn from its seed.

    Attributes:
        outcomes: How often what ended how.
    """

    def __init__(self, connection: Connection, models: dict[str, TinyModel], seed: int) -> None:
        self.connection = connection
        self.models = models
        self.random = random.Random(seed)
        self.outcomes: Counter[tuple[str, grpc.StatusCode]] = Counter()

    def live(self) -> None:
        acts = [self.embed] * 6 + [self.cancel, self.load, self.pin, self.unload, self.force]
        for _ in range(ROUNDS):
            act = self.random.choice([*acts, self.look])
            self.outcomes[act.__name__, act(self.random.choice(NAMES))] += 1

    def embed(self, name: str) -> grpc.StatusCode:
        future = self.connection.start("red blue", model=name)
        if future.exception() is not None:
            return refusal(future.result).code
        expected = self.models[name].vector("red blue")
        np.testing.assert_allclose(rows(future.result()), [expected], atol=1e-6)
        return grpc.StatusCode.OK

    def cancel(self, name: str) -> grpc.StatusCode:
        self.connection.start("slow slow", model=name).cancel()
        return grpc.StatusCode.CANCELLED

    def load(self, name: str) -> grpc.StatusCode:
        return _code(lambda: self.connection.load(name))

    def pin(self, name: str) -> grpc.StatusCode:
        """Pin a model, then take the pin off: two of them may be pinned at a time."""
        code = _code(lambda: self.connection.load(name, pin=True))
        _code(lambda: self.connection.load(name, pin=False))
        return code

    def unload(self, name: str) -> grpc.StatusCode:
        request = control_pb.UnloadModelRequest(model=name)
        timeout_s = self.random.choice([0.01, TIMEOUT_S])
        return _code(lambda: self.connection.control.UnloadModel(request, timeout_s))

    def force(self, name: str) -> grpc.StatusCode:
        return _code(lambda: self.connection.unload(name, force_after=duration_pb2.Duration()))

    def look(self, name: str) -> grpc.StatusCode:
        assert name in self.connection.models()
        return _code(self.connection.info)


def _code(call: Callable[[], object]) -> grpc.StatusCode:
    try:
        call()
    except grpc.RpcError as error:
        assert isinstance(error, grpc.Call)
        return error.code()
    return grpc.StatusCode.OK


ALLOWED = {
    # By force, while it waited; no room beside two pinned ones.
    "embed": {
        grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED,
    },
    "cancel": {grpc.StatusCode.CANCELLED},
    "load": {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED},
    "pin": {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED},
    "unload": {grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED},
    "force": {grpc.StatusCode.OK},
    "look": {grpc.StatusCode.OK},
}  # fmt: skip


def test_churn_gives_right_answers_or_the_errors_it_should(tmp_path: Path) -> None:
    """Nobody gets another model's vector, nobody hangs, nothing fails inside."""
    models = {name: make_tiny_model(tmp_path, name, seed=seed) for seed, name in enumerate(NAMES)}
    with (
        RunningServer(
            model_dir=tmp_path, default_model="a", max_resident_models=2, eviction_wait_s=2
        ) as running,
        unharmed(running) as connection,
    ):
        callers = [Caller(connection, models, seed) for seed in range(CALLERS)]
        with ThreadPoolExecutor(CALLERS) as threads:
            for done in [threads.submit(caller.live) for caller in callers]:
                done.result()

        total = sum((caller.outcomes for caller in callers), Counter())
        wrong = {key: times for key, times in total.items() if key[1] not in ALLOWED[key[0]]}
        assert wrong == {}
        assert total["embed", grpc.StatusCode.OK] > CALLERS * ROUNDS / 4
        for name in NAMES:
            connection.unload(name)

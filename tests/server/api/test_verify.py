"""Whether a model still gives the vectors that are kept with it, over a real channel."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from shoal.v1 import model_control_pb2 as control_pb
from shoal.v1 import verification_pb2 as pb
from shoal_server.registry.reference import REFERENCE_FILE
from tests.reference import TEXTS, keep_vectors
from tests.running import RunningServer
from tests.tiny_model import DIMENSIONS, Float32, TinyModel, make_tiny_model

from .calls import (
    SLOW,
    TIMEOUT_S,
    Connection,
    assert_idle,
    assert_no_surprise,
    eventually,
    refusal,
    rows,
)


class Verifying(Connection):
    """A connection that also verifies models."""

    def verify(self, model: str) -> list[pb.ModelVerified]:
        request = pb.VerifyModelRequest(model=model)
        return list(self.control.VerifyModel(request, timeout=TIMEOUT_S).results)

    def accuracy(self, model: str) -> pb.Accuracy:
        """The outcome for a name that stands for one version."""
        (result,) = self.verify(model)
        return result.accuracy

    def get(self, model: str) -> control_pb.ModelInfo:
        request = control_pb.GetModelRequest(model=model)
        return self.control.GetModel(request, timeout=TIMEOUT_S).model


def wrong(model: TinyModel) -> Float32:
    """The vectors of a model's texts, one of them another's."""
    vectors = np.stack([model.vector(text) for text in TEXTS])
    vectors[2] = model.vector("orange")
    return vectors


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TinyModel]:
    """Models that give what is kept with them, and others, by name."""
    root = tmp_path_factory.mktemp("repository") / "models"
    names = ("good", "idle", "again", "busy", "bad", "unfinite", "bare", "damaged")
    # One of them is slow when asked to be, and its texts do not run together.
    models = {
        name: make_tiny_model(root, name, serving={"max_batch_items": 1} if name == "busy" else {})
        for name in names
    }
    for name in ("good", "idle", "again", "busy", "damaged"):
        keep_vectors(models[name])
    keep_vectors(models["bad"], vectors=wrong(models["bad"]))
    keep_vectors(
        models["unfinite"], texts=("red", "red nan"), vectors=np.ones((2, DIMENSIONS), np.float32)
    )
    (models["damaged"].folder / REFERENCE_FILE).write_bytes(b"no archive")
    return models


@pytest.fixture(scope="module")
def server(models: dict[str, TinyModel]) -> Iterator[RunningServer]:
    root = models["good"].root
    with RunningServer(model_dir=root, preload="none", default_model="good") as it:
        yield it


@pytest.fixture
def board(server: RunningServer) -> Iterator[Verifying]:
    with Verifying(server.address) as connection:
        yield connection
        assert_idle(connection)
    assert_no_surprise(server)


def test_a_model_that_gives_what_is_kept_passes(board: Verifying) -> None:
    """The answer has the figures of both sides; the model's description shows them later."""
    before_s = time.time()
    accuracy = board.accuracy("good")
    assert accuracy.passed
    assert accuracy.texts == len(TEXTS)
    assert accuracy.mean_cosine == pytest.approx(1.0, abs=1e-6)
    assert accuracy.least_cosine == pytest.approx(1.0, abs=1e-6)
    assert accuracy.expected_least_cosine == 1.0
    assert not accuracy.HasField("expected_mean_cosine")
    assert (accuracy.tolerance, accuracy.reference) == (0.001, "tests 1")
    assert before_s - 1 <= accuracy.time.ToMicroseconds() / 1e6 <= time.time() + 1
    shown = board.get("good")
    assert shown.accuracy == accuracy
    assert shown.state == control_pb.MODEL_STATE_READY


def test_a_model_that_does_not_is_marked(board: Verifying, models: dict[str, TinyModel]) -> None:
    """It serves on, in the state error, with the reason, until a verification passes."""
    accuracy = board.accuracy("bad")
    assert not accuracy.passed
    assert accuracy.least_cosine < 0.999 < accuracy.expected_least_cosine
    shown = board.get("bad")
    assert shown.state == control_pb.MODEL_STATE_ERROR
    assert accuracy.problem in shown.state_reason
    assert len(board.embed("red", model="bad").vectors) > 0
    keep_vectors(models["bad"])
    board.unload("bad")
    board.load("bad")
    assert board.accuracy("bad").passed
    assert board.get("bad").state == control_pb.MODEL_STATE_READY


def test_a_vector_that_is_not_finite_does_not_pass(board: Verifying) -> None:
    """It is told apart from a failing call: the outcome is the answer."""
    accuracy = board.accuracy("unfinite")
    assert not accuracy.passed
    assert not accuracy.HasField("least_cosine")
    assert "not finite" in accuracy.problem


def test_where_nothing_is_kept_the_refusal_says_what_to_do(board: Verifying) -> None:
    """Models that were prepared before have none; nothing is loaded to find that out."""
    refused = refusal(lambda: board.verify("bare"))
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refused.reason == "NOTHING_TO_COMPARE"
    assert "shoal models pull bare --version" in refused.message
    assert not board.get("bare").HasField("residency")


def test_kept_vectors_that_were_damaged_are_told(board: Verifying) -> None:
    """And serving does not need them."""
    refused = refusal(lambda: board.verify("damaged"))
    assert refused.metadata["file"] == "reference.npz"
    assert len(board.embed("red", model="damaged").vectors) > 0


def test_requests_meanwhile_are_answered(board: Verifying) -> None:
    """It goes behind them, and gets its answer all the same."""
    slow = [board.start(SLOW, model="busy") for _ in range(6)]
    board.wait_in_flight(len(slow))
    assert board.accuracy("busy").passed
    assert all(rows(each.result()).shape == (1, DIMENSIONS) for each in slow)


def test_it_is_no_use_of_the_model(board: Verifying) -> None:
    """A model that is only verified is released as idle as if it were not."""
    board.load("idle")
    before = board.get("idle").residency.uses
    board.verify("idle")
    assert board.get("idle").residency.uses == before


def test_every_verification_is_an_event(board: Verifying, server: RunningServer) -> None:
    """With the outcome."""
    before = server.metric("shoal_events_total", kind="model_verified")
    board.verify("again")
    assert server.metric("shoal_events_total", kind="model_verified") == before + 1


def test_unknown_models_are_told(board: Verifying) -> None:
    """As by every call."""
    assert refusal(lambda: board.verify("nobody")).code is grpc.StatusCode.NOT_FOUND


def test_models_in_memory_are_verified_at_an_interval(tmp_path: Path) -> None:
    """Of itself, each; and what was found outlasts the server."""
    for name in ("one", "two"):
        model = make_tiny_model(tmp_path, name)
        keep_vectors(model, vectors=wrong(model) if name == "two" else None)
    settings = {"model_dir": tmp_path, "default_model": "one", "preload": "one,two"}
    with (
        RunningServer(**settings, verify_interval_s=0.05) as server,
        Verifying(server.address) as board,
    ):
        names = ("one", "two")
        eventually(
            lambda: all(board.get(name).HasField("accuracy") for name in names), "both verified"
        )
        assert board.get("one").accuracy.passed
    with RunningServer(**settings) as server, Verifying(server.address) as board:
        assert board.get("one").accuracy.passed
        assert board.get("two").state == control_pb.MODEL_STATE_ERROR

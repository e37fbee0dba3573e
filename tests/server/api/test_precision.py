"""The precision that models are served in, over a real channel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from shoal.v1 import model_control_pb2 as control_pb
from tests.running import RunningServer
from tests.tiny_model import TinyModel, add_tiny_variant, make_tiny_model

from .calls import KNOWN_TEXT, Connection, refusal, rows, unharmed


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def variant(root: Path) -> TinyModel:
    """The int8 variant of `small`."""
    return add_tiny_variant(make_tiny_model(root, "small"))


@pytest.fixture(scope="module")
def plain(root: Path) -> TinyModel:
    """A model without variants."""
    return make_tiny_model(root, "plain")


@pytest.fixture(scope="module")
def exact(root: Path) -> TinyModel:
    """A model with a variant, to be served as it was prepared."""
    model = make_tiny_model(root, "exact", serving={"precision": "fp32"})
    add_tiny_variant(model)
    return model


@pytest.fixture(scope="module")
def connection(
    root: Path, variant: TinyModel, plain: TinyModel, exact: TinyModel
) -> Iterator[Connection]:
    """To a server whose precision is int8."""
    make_tiny_model(root, "strict", serving={"precision": "int8"})
    settings = {"default_model": "small", "precision": "int8", "preload": "none"}
    with RunningServer(model_dir=root, **settings) as server, unharmed(server) as connection:
        yield connection


def test_the_servers_precision_is_used_where_it_can_be(
    connection: Connection, variant: TinyModel, plain: TinyModel, exact: TinyModel
) -> None:
    """The variant where there is one, unless the model wants its own graph."""
    for model in (variant, plain, exact):
        found = rows(connection.embed(KNOWN_TEXT, model=model.name))
        np.testing.assert_allclose(found, [model.vector(KNOWN_TEXT)], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "precision"), [("small", "int8"), ("plain", "fp32"), ("exact", "fp32")]
)
def test_callers_are_told(connection: Connection, name: str, precision: str) -> None:
    """GetModel and ListModels say what is served."""
    listed = connection.models()[name]
    assert listed.precision == precision
    # A tiny model has no reference; its variant has the version.
    assert listed.HasField("reference_cosine") == (precision == "int8")
    connection.load(name)
    request = control_pb.GetModelRequest(model=name)
    assert connection.control.GetModel(request).model.precision == precision


def test_a_precision_that_is_missing_is_refused(connection: Connection) -> None:
    """A model that is to be served in int8 is not served in fp32 in silence."""
    error = refusal(lambda: connection.embed(KNOWN_TEXT, model="strict"))
    assert error.code is grpc.StatusCode.FAILED_PRECONDITION
    assert "shoal models quantize strict@1 --precision int8" in error.message
    described = connection.models()["strict"]
    assert described.state == control_pb.MODEL_STATE_ERROR
    assert "shoal models quantize" in described.state_reason

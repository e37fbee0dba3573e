"""`shoal models verify-vectors`, `reload`, `update`, on a running server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.reference import TEXTS, keep_vectors
from tests.running import RunningServer
from tests.tiny_model import make_tiny_model

from .conftest import Shoal


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with good models, and one whose vectors are not those that are kept."""
    root = tmp_path_factory.mktemp("models")
    keep_vectors(make_tiny_model(root))
    worse = make_tiny_model(root, "worse")
    keep_vectors(worse, vectors=-np.stack([worse.vector(text) for text in TEXTS]))
    with RunningServer(model_dir=root, default_model="tiny") as server:
        keep_vectors(make_tiny_model(root, version="2", seed=2))
        yield server.address


def test_a_model_that_is_good(shoal: Shoal, address: str) -> None:
    """A line with the figures of both sides."""
    done = shoal("models", "verify-vectors", "tiny", "--address", address)
    assert done.stdout == (
        "tiny@1 (fp32, 4 texts): cosine to tests 1 1.000000 on average, at least 1.000000, "
        "expected 0.999000: passed\n"
    )


def test_a_model_that_is_not(shoal: Shoal, address: str) -> None:
    """The exit status says it too, for scripts."""
    done = shoal("models", "verify-vectors", "worse", "--address", address)
    assert done.exit_code == 1
    assert "at least -1.000000" in done.stdout
    assert done.stdout.endswith("WORSE THAN WHEN IT WAS PREPARED\n")


def test_reloading_and_updating(shoal: Shoal, address: str) -> None:
    """Each says what is served then."""
    done = shoal("models", "reload", "tiny", "--address", address)
    assert done.stdout.startswith("tiny@1: files read again in ")
    assert done.stdout.endswith(" s, serves on cpu\n")
    done = shoal("models", "update", "tiny", "--address", address)
    assert done.stdout.startswith("tiny: updated from version 1 to 2 (fp32, 4 texts): ")
    done = shoal("models", "update", "--source", "repository", "--address", address)
    assert done.stdout == "the default model: version 2 is the newest\n"


def test_as_json(shoal: Shoal, address: str) -> None:
    """The answer, also that something is not so."""

    def told(*arguments: str) -> Any:
        return json.loads(shoal("models", *arguments, "--address", address, "--json").stdout)

    (verified,) = told("verify-vectors", "worse")
    assert (verified["model"], verified["accuracy"]["passed"]) == ("worse", False)
    (reloaded,) = told("reload", "worse")
    assert (reloaded["version"], reloaded["device"]) == ("1", "cpu")
    assert told("update", "worse")["updated"] is False


def test_what_is_known_to_be_bad_is_said_in_words(shoal: Shoal, tmp_path: Path) -> None:
    """By each command that meets it: whether it serves, and what is wrong."""
    for version in ("1", "2"):
        keep_vectors(make_tiny_model(tmp_path, version=version))
    worse = make_tiny_model(tmp_path, version="3")
    keep_vectors(worse, vectors=-np.stack([worse.vector(text) for text in TEXTS]))
    with RunningServer(model_dir=tmp_path, default_model="tiny", preload="tiny@1") as server:

        def said(*command: str) -> list[str]:
            done = shoal("models", *command, "--address", server.address)
            assert done.exit_code == 0
            return [line.split(": ")[0] for line in done.stdout.splitlines()]

        passed_over = "tiny@3 is passed over"
        serves = "tiny@3 serves, though it is known to be bad"
        assert said("update", "tiny") == ["tiny", passed_over]
        assert said("pin-version", "tiny", "3") == ["tiny", serves]
        assert said("unpin-version", "tiny") == ["tiny", passed_over]
        assert said("switch", "prod", "tiny@3") == ["prod", serves]

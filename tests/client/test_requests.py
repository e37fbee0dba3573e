"""What the caller gives, checked before it is sent."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.v1.embed_pb2 import VectorEncoding
from shoal_client import InvalidArgumentError
from shoal_client.base import bounded_chunk_size
from shoal_client.events import EventPosition
from shoal_client.ranges import all_whole
from shoal_client.requests import (
    ENCODINGS,
    new_deregister_request,
    new_embed_request,
    new_settings_request,
    new_switch_request,
    new_unload_request,
    text_bytes,
    token_ids,
)


@given(st.text())
def test_size_of_a_text_is_that_of_its_utf8(text: str) -> None:
    """Sizes are counted as the server counts them."""
    assert text_bytes(text, 0) == len(text.encode())


@pytest.mark.parametrize("text", ["\ud800", "fine until \udfff here"])
def test_lone_surrogate_is_named_with_its_place(text: str) -> None:
    """The message gives the index of the text and of the character."""
    with pytest.raises(InvalidArgumentError, match=r"texts\[4\]: character \d+") as raised:
        text_bytes(text, 4)
    assert (raised.value.field, raised.value.reason) == ("texts[4]", "INVALID_INPUT")


@pytest.mark.parametrize("value", [None, 3, b"bytes", ["nested"]])
def test_other_types_are_named(value: object) -> None:
    """What is not a str is refused with its index and type."""
    with pytest.raises(TypeError, match=rf"texts\[2\] is {type(value).__name__}"):
        text_bytes(value, 2)


@pytest.mark.parametrize("option", ["encoding", "priority"])
def test_unknown_name_is_refused_with_the_known_ones(option: str) -> None:
    """A wrong name says which ones are right."""
    with pytest.raises(InvalidArgumentError, match="'huge' is not one of") as raised:
        new_embed_request(**{option: "huge"})  # type: ignore[arg-type]
    assert raised.value.field == option


def test_every_encoding_of_the_protos_has_a_name() -> None:
    """A new encoding can not be forgotten here."""
    assert set(ENCODINGS.values()) | {0} == set(VectorEncoding.values())


@pytest.mark.parametrize(("force_after_s", "nanoseconds"), [(0, 0), (1.5, 1_500_000_000)])
def test_unload_by_force(force_after_s: float, nanoseconds: int) -> None:
    """Zero is set, and is not the same as unset."""
    request = new_unload_request("m", force_after_s)
    assert request.HasField("force_after")
    assert request.force_after.ToNanoseconds() == nanoseconds
    assert not new_unload_request("m", None).HasField("force_after")


@pytest.mark.parametrize("value", [16, True, None])
def test_settings_are_in_words(value: object) -> None:
    """A number could be meant in more than one way; the setting is named."""
    with pytest.raises(TypeError, match=rf"settings\[drain_s\] is {type(value).__name__}, not str"):
        new_settings_request({"drain_s": value}, persist=False)  # type: ignore[dict-item]


def test_targets_come_with_weights() -> None:
    """A list of them does not say how the traffic is shared."""
    with pytest.raises(TypeError, match="mapping from names to weights"):
        new_switch_request("prod", ["m@1", "m@2"], False)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("build", "field", "value"),
    [
        (lambda: new_switch_request("prod", {"m@1": 9, "m@2": -1}, False),
         "targets[1].weight", "-1"),
        (lambda: new_switch_request("prod", {"m": 1 << 32}, False),
         "targets[0].weight", "4294967296"),
        (lambda: new_embed_request(dimensions=-5), "dimensions", "-5"),
        (lambda: new_unload_request("m", math.nan), "force_after_s", "nan"),
        (lambda: new_unload_request("m", math.inf), "force_after_s", "inf"),
        (lambda: new_deregister_request("m", -2.5), "force_after_s", "-2.5"),
        (lambda: EventPosition((), (), -1, ""), "after_sequence", "-1"),
        (lambda: EventPosition((), (), 1 << 64, ""), "after_sequence", str(1 << 64)),
        (lambda: all_whole([8, -8], "lengths"), "lengths[1]", "-8"),
        (lambda: bounded_chunk_size(0, 9), "chunk_size", "0"),
        (lambda: token_ids([-1], 3), "tokens[3]", "-1"),
    ],
)  # fmt: skip
def test_a_number_that_does_not_fit_names_its_field(
    build: Callable[[], object], field: str, value: str
) -> None:
    """As the server's own refusals do: field, value, and what is allowed."""
    with pytest.raises(InvalidArgumentError) as raised:
        build()
    assert (raised.value.field, raised.value.reason) == (field, "INVALID_INPUT")
    assert value in raised.value.message
    assert re.search(r"from 0 to \d+|at least 1", raised.value.message)


def test_numbers_that_fit_are_sent_as_they_are() -> None:
    """The limits themselves, and what numpy counts with."""
    assert new_embed_request(dimensions=(1 << 32) - 1).dimensions == (1 << 32) - 1
    request = new_switch_request("prod", {"m": np.int64(3)}, False)  # type: ignore[dict-item]
    assert request.targets[0].weight == 3
    assert new_unload_request("m", 0.0).HasField("force_after")
    assert not new_unload_request("m", None).HasField("force_after")

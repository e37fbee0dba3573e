"""Settings that change while the server runs."""

from __future__ import annotations

import pytest

from shoal_server.errors import FailedPrecondition, InvalidInput
from shoal_server.runtime_settings import RuntimeSettings, SettingChange
from shoal_server.settings import Settings


class Changing:
    """Settings of which some may change, and what came of it."""

    def __init__(self) -> None:
        self.told: list[tuple[SettingChange, ...]] = []
        self.applied: list[Settings] = []
        self.runtime = RuntimeSettings(Settings(), self.told.append)
        self.runtime.on_change({"slow_request_ms", "log_requests"}, self.applied.append)
        self.runtime.on_change({"rate_limit_overrides"}, lambda _: None)
        self.runtime.on_change({"rate_limit_requests_per_min"}, lambda _: None)
        self.runtime.on_change({"pressure_threshold"}, lambda _: None)


@pytest.fixture
def changing() -> Changing:
    return Changing()


def test_a_change_holds_and_is_told(changing: Changing) -> None:
    """The values, whoever uses them, and whoever watches, all know of it."""
    changes = changing.runtime.update({"slow_request_ms": "250", "log_requests": "true"})
    assert changes == (
        SettingChange("log_requests", "false", "true"),
        SettingChange("slow_request_ms", "1000.0", "250.0"),
    )
    assert changing.told == [changes]
    assert changing.applied == [changing.runtime.values]
    assert changing.runtime.values.slow_request_ms == 250
    assert changing.runtime.at_start.slow_request_ms == 1000


def test_a_change_is_told_before_what_comes_of_it() -> None:
    """Who watches sees the cause first."""
    order: list[str] = []
    runtime = RuntimeSettings(Settings(), lambda _: order.append("told"))
    runtime.on_change({"slow_request_ms"}, lambda _: order.append("applied"))
    runtime.update({"slow_request_ms": "250"})
    assert order == ["told", "applied"]


def test_what_is_not_different_is_no_change(changing: Changing) -> None:
    """Nobody is told, nothing is applied anew: rate limits would begin with full buckets."""
    assert changing.runtime.update({"slow_request_ms": "1000"}) == ()
    assert changing.runtime.update({}) == ()
    assert (changing.told, changing.applied) == ([], [])


def test_only_those_are_told_whose_settings_changed(changing: Changing) -> None:
    """A change of the log does not touch the rate limits."""
    changing.runtime.update({"pressure_threshold": "0.85"})
    assert changing.applied == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("slow_request_ms", "0"),
        ("slow_request_ms", "soon"),
        ("slow_request_ms", "unset"),
        ("slow_request_ms", "inf"),
        ("log_requests", "2"),
        ("rate_limit_overrides", "a=b"),
        ("rate_limit_overrides", "a=1/1" + 400 * "0"),
        ("pressure_threshold", "0.1"),  # below the lower one
    ],
)
def test_a_wrong_value_changes_nothing(changing: Changing, name: str, text: str) -> None:
    """Nor do the right ones beside it."""
    with pytest.raises(InvalidInput, match=name.removeprefix("pressure_")):
        changing.runtime.update({"rate_limit_requests_per_min": "5", name: text})
    assert changing.runtime.values == changing.runtime.at_start
    assert (changing.told, changing.applied) == ([], [])


def test_the_setting_that_is_wrong_is_named(changing: Changing) -> None:
    """As the field, so that a program can tell which of several it is."""
    with pytest.raises(InvalidInput) as raised:
        changing.runtime.update({"log_requests": "true", "slow_request_ms": "0"})
    assert raised.value.field == "settings[slow_request_ms]"


def test_an_unknown_name_is_refused(changing: Changing) -> None:
    """As at the start."""
    with pytest.raises(InvalidInput) as raised:
        changing.runtime.update({"slow_request_ms": "1", "slow_requests": "1"})
    assert raised.value.field == "settings[slow_requests]"
    assert changing.runtime.values.slow_request_ms == 1000


def test_a_setting_that_needs_a_restart_says_so(changing: Changing) -> None:
    """And the others stay as they are."""
    with pytest.raises(FailedPrecondition, match=r"grpc_port .* restart"):
        changing.runtime.update({"slow_request_ms": "1", "grpc_port": "1"})
    assert changing.runtime.values.slow_request_ms == 1000


def test_unset_takes_a_limit_away(changing: Changing) -> None:
    """Where there may be none."""
    changing.runtime.update({"rate_limit_requests_per_min": "5"})
    changing.runtime.update({"rate_limit_requests_per_min": "unset"})
    assert changing.runtime.values.rate_limit_requests_per_min is None


def test_lists_are_as_on_the_command_line(changing: Changing) -> None:
    """Separated by commas; `none` for an empty one."""
    changing.runtime.update({"rate_limit_overrides": "a=1/-,b=-/2"})
    assert changing.runtime.values.rate_limit_overrides == ("a=1/-", "b=-/2")
    changing.runtime.update({"rate_limit_overrides": "none"})
    assert not changing.runtime.values.rate_limit_overrides


def test_a_long_wrong_value_is_not_repeated_at_length(changing: Changing) -> None:
    """Callers can not fill the log."""
    with pytest.raises(InvalidInput) as raised:
        changing.runtime.update({"slow_request_ms": "x" * 100_000})
    assert len(raised.value.message) < 1000

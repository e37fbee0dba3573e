"""Where settings come from, who wins, and what is said of a wrong one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

import pytest
from pydantic.fields import FieldInfo

from shoal_server.presets import PRESETS
from shoal_server.settings import Settings
from shoal_server.settings_sources import SettingsError, load_settings

MANY = tuple(Settings.model_fields.items())
# Values of settings whose lists hold what not every word is.
LISTS = {"caller_names": "12=a", "rate_limit_overrides": "12=1/-,a=-/2"}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The developer's own variables are nobody's business here."""
    for name in [name for name in os.environ if name.upper().startswith("SHOAL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    return tmp_path / "shoal.toml"


def test_without_any_source_all_is_default() -> None:
    """Every setting has a default, and says that it is one."""
    loaded = load_settings()
    assert loaded.values == Settings()
    assert dict(loaded.origins) == dict.fromkeys(Settings.model_fields, "default")
    assert loaded.unknown_variables == ()


def test_the_stronger_source_wins(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Default < file < environment < command line, and each tells where its value is from."""
    config_file.write_text("max_batch_items = 2\nmax_batch_tokens = 2\nmax_wait_ms = 2.5\n")
    monkeypatch.setenv("SHOAL_MAX_BATCH_TOKENS", "3")
    monkeypatch.setenv("SHOAL_MAX_WAIT_MS", "3.5")
    loaded = load_settings({"max_wait_ms": 4.5}, config_file)
    values = loaded.values
    assert (values.max_batch_items, values.max_batch_tokens, values.max_wait_ms) == (2, 3, 4.5)
    origins = {name: origin for name, origin in loaded.origins.items() if origin != "default"}
    assert origins == {
        "max_batch_items": "shoal.toml",
        "max_batch_tokens": "SHOAL_MAX_BATCH_TOKENS",
        "max_wait_ms": "command line",
    }


def test_the_file_may_be_named_by_a_variable(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`SHOAL_CONFIG_FILE` names the file, unless the command line names another."""
    config_file.write_text("cuda_slots = 5\n")
    other = tmp_path / "other.toml"
    other.write_text("cuda_slots = 6\n")
    monkeypatch.setenv("SHOAL_CONFIG_FILE", str(config_file))
    assert load_settings().values.cuda_slots == 5
    assert load_settings(config_file=other).values.cuda_slots == 6
    assert load_settings().unknown_variables == ()


@pytest.mark.parametrize(("name", "field"), MANY)
def test_each_setting_is_read_from_its_variable(
    name: str, field: FieldInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`SHOAL_<NAME>` sets the setting `<name>`, whatever its type."""
    default = field.default
    text = "12" if default is None or isinstance(default, tuple) else str(default)
    text = LISTS.get(name, text)
    monkeypatch.setenv(f"SHOAL_{name.upper()}", text)
    companions = {each: "file" for each in ("tls_cert_file", "tls_key_file") if each != name}
    loaded = load_settings(companions)
    assert loaded.origins[name] == f"SHOAL_{name.upper()}"
    value = getattr(loaded.values, name)
    shown = ",".join(value) if isinstance(value, tuple) else str(value)
    assert shown.removesuffix(".0") == text.removesuffix(".0")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("caller_names", text) for text in ("a", "=a", "a=", "a=b,c")),
        *(("rate_limit_overrides", text) for text in ("a", "a=1", "a=0/1", "a=1/x", "=1/1")),
        ("rate_limit_requests_per_min", "0"),
    ],
)
def test_callers_and_their_limits_are_checked(
    name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What can not be read is told when the server starts, with the part that is wrong."""
    monkeypatch.setenv(f"SHOAL_{name.upper()}", text)
    with pytest.raises(SettingsError, match=rf"{name}: .*not '({text}|c)'"):
        load_settings()


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_sets_what_it_says(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every value that it lists, each different from the default; and says that it did."""
    monkeypatch.setenv("SHOAL_PRESET", preset)
    loaded = load_settings()
    for name, value in PRESETS[preset].items():
        assert getattr(loaded.values, name) == value != Settings.model_fields[name].default
        assert loaded.origins[name] == f"preset {preset}"


def test_what_is_set_is_stronger_than_the_preset(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it is set, and wherever the preset was chosen."""
    config_file.write_text("max_batch_items = 5\n")
    monkeypatch.setenv("SHOAL_MAX_BATCH_TOKENS", "600")
    loaded = load_settings({"preset": "latency"}, config_file)
    assert (loaded.values.max_batch_items, loaded.values.max_batch_tokens) == (5, 600)
    assert loaded.values.max_wait_ms == 0


def test_every_preset_can_be_chosen() -> None:
    """Those that there are and no other."""
    assert set(get_args(Settings.model_fields["preset"].annotation)) == {"none", *PRESETS}
    with pytest.raises(SettingsError, match=r"preset: .*'fastest'"):
        load_settings({"preset": "fastest"})


def test_an_empty_variable_counts_as_not_set(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty string from a template neither sets nor hides anything."""
    config_file.write_text("cuda_slots = 5\n")
    monkeypatch.setenv("SHOAL_CUDA_SLOTS", "")
    monkeypatch.setenv("SHOAL_LOG_LEVEL", "")
    monkeypatch.setenv("SHOAL_CONFIG_FILE", "")
    loaded = load_settings(config_file=config_file)
    assert (loaded.values.cuda_slots, loaded.origins["cuda_slots"]) == (5, "shoal.toml")
    assert (loaded.values.log_level, loaded.origins["log_level"]) == ("info", "default")


def test_the_environment_is_read_when_settings_are_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not at import: a variable set later counts for the next load."""
    before = load_settings().values.cuda_slots
    monkeypatch.setenv("SHOAL_CUDA_SLOTS", str(before + 1))
    assert load_settings().values.cuda_slots == before + 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", ("a",)),
        ("a,b@2", ("a", "b@2")),
        (" a , b ", ("a", "b")),
        ("a,,b", ("a", "", "b")),
        (",", ("", "")),
        ("none", ()),
        (" none ", ()),
    ],
)
def test_lists_from_one_string(
    text: str, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Separated by commas, spaces around them dropped; an empty name stays, `none` is none."""
    monkeypatch.setenv("SHOAL_PRELOAD", text)
    assert load_settings().values.preload == expected
    assert load_settings({"preload": text}).values.preload == expected


@pytest.mark.parametrize(
    ("toml", "expected"),
    [('["a", "b"]', ("a", "b")), ("[]", ()), ('"a,b"', ("a", "b")), ('""', ("",))],
)
def test_lists_from_the_file(toml: str, expected: tuple[str, ...], config_file: Path) -> None:
    """A TOML array, or a string as elsewhere."""
    config_file.write_text(f"preload = {toml}\n")
    assert load_settings(config_file=config_file).values.preload == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("grpc_port", "65536"), ("grpc_port", "-1"), ("grpc_port", "http"), ("cuda_slots", "0")],
        *[("max_wait_ms", "nan"), ("max_wait_ms", "-0.1"), ("drain_s", "inf")],
        *[("max_padding_waste", "1"), ("keepalive_s", "0"), ("cuda_tf32", "maybe")],
        *[("log_level", "INFO"), ("log_format", "xml"), ("cuda_arena_strategy", "fast")],
        *[("device", "gpu"), ("device", "cuda:"), ("device", "cuda:1234"), ("device", "CPU")],
        *[("max_resident_models", "0"), ("memory_budget_bytes", "80%")],
    ],
)
def test_a_bad_value_is_named_with_its_source(
    name: str, value: str, config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the setting, where the value came from, and the value."""
    config_file.write_text(f'{name} = "{value}"\n')
    with pytest.raises(SettingsError) as from_file:
        load_settings(config_file=config_file)
    with pytest.raises(SettingsError) as from_command_line:
        load_settings({name: value})
    monkeypatch.setenv(f"SHOAL_{name.upper()}", value)
    with pytest.raises(SettingsError) as from_environment:
        load_settings()
    for raised, source in (
        (from_file, "shoal.toml"),
        (from_command_line, "command line"),
        (from_environment, f"SHOAL_{name.upper()}"),
    ):
        message = str(raised.value)
        assert message.startswith(f"{name}: ")
        assert f"{value!r} (from {source})" in message


def test_every_bad_value_is_told_at_once() -> None:
    """One line each, so that nobody mends them one start at a time."""
    with pytest.raises(SettingsError) as raised:
        load_settings({"grpc_port": -1, "cuda_slots": 0})
    assert [line.partition(":")[0] for line in str(raised.value).splitlines()] == [
        "grpc_port",
        "cuda_slots",
    ]


def test_an_unknown_name_in_the_file_is_an_error(config_file: Path) -> None:
    """A setting that is misspelt there would be ignored in silence."""
    config_file.write_text("max_batch_item = 3\n")
    with pytest.raises(SettingsError, match=r"max_batch_item: no such setting \(from shoal.toml\)"):
        load_settings(config_file=config_file)


def test_unknown_variables_are_told_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may use the prefix too: told, sorted, without those that are known to."""
    for name in (
        "SHOAL_ZZZ",
        "SHOAL_MAX_BATCH_ITEM",
        "SHOAL_ADDRESS",
        "SHOAL_EXPORT_ENV",
        "SHOALS",
    ):
        monkeypatch.setenv(name, "1")
    assert load_settings().unknown_variables == ("SHOAL_MAX_BATCH_ITEM", "SHOAL_ZZZ")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "No such file"),
        (b"grpc_port = ", "not valid TOML"),
        (b"\xff\xfe", "not valid TOML"),
        (b"[network]\ngrpc_port = 1\n", "network: no such setting"),
    ],
)
def test_a_file_that_can_not_be_read_is_named(
    content: bytes | None, what: str, config_file: Path
) -> None:
    """Missing, no TOML, not UTF-8, or in sections that do not exist."""
    if content is not None:
        config_file.write_bytes(content)
    with pytest.raises(SettingsError, match=what) as raised:
        load_settings(config_file=config_file)
    assert "shoal.toml" in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"tls_cert_file": "c"}, ["tls_cert_file", "tls_key_file"]),
        ({"tls_key_file": "k"}, ["tls_cert_file", "tls_key_file"]),
        ({"tls_client_ca_file": "r"}, ["tls_client_ca_file", "tls_cert_file"]),
        (
            {"pressure_threshold": 0.6},
            ["pressure_lower_threshold", "0.7", "pressure_threshold", "0.6"],
        ),
        (
            {"pressure_threshold": 0.96},
            ["pressure_threshold", "0.96", "pressure_critical_threshold", "0.95"],
        ),
        (
            {"max_request_bytes": 2048, "max_message_bytes": 2047},
            ["max_request_bytes", "2048", "max_message_bytes", "2047"],
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: dict[str, object], named: list[str]
) -> None:
    """Both are named, with their values where these are the matter."""
    with pytest.raises(SettingsError) as raised:
        load_settings(settings)
    assert all(each in str(raised.value) for each in named)


def test_settings_that_belong_together_are_taken_together() -> None:
    """Certificate, key and roots; a request as large as a message."""
    values = load_settings(
        {
            "tls_cert_file": "c",
            "tls_key_file": "k",
            "tls_client_ca_file": "r",
            "max_request_bytes": 2048,
            "max_message_bytes": 2048,
        }
    ).values
    assert values.tls_client_ca_file == Path("r")


@pytest.mark.parametrize(("name", "field"), MANY)
def test_each_setting_is_described(name: str, field: FieldInfo) -> None:
    """A sentence and a group for `--help` and the docs; its unit is in its name."""
    assert field.description
    assert field.description.endswith(".")
    assert isinstance(field.json_schema_extra, dict)
    assert field.json_schema_extra["group"]
    if isinstance(field.default, float):
        assert name.endswith(("_s", "_ms", "_waste", "_share", "_threshold"))

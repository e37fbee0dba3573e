"""A server that can not start says why in one line, and with the right exit status."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import RunningServer, failed_start, without_gpu
from tests.server.api.calls import Connection
from tests.tiny_model import TinyModel, make_tiny_model

CAN_NOT_START, WRONG_SETTINGS = 1, 2


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        yield port


def last_line(output: str) -> str:
    """What the server said last; nothing before it is a stack trace."""
    assert "Traceback" not in output
    return output.strip().splitlines()[-1]


@pytest.mark.parametrize("face", ["grpc", "http"])
def test_port_in_use(model: TinyModel, taken: int, face: str) -> None:
    """The address that can not be had is named, and what to do."""
    status, output = failed_start(
        model_dir=model.root, default_model="tiny", **{f"{face}_port": taken}
    )

    said = last_line(output)
    assert status == CAN_NOT_START
    assert said.startswith("shoal: ")
    assert f"127.0.0.1:{taken}" in said
    assert f"--{face}-port 0" in said


@pytest.mark.parametrize("name", ["absent", "tiny@7"])
def test_missing_model(model: TinyModel, name: str) -> None:
    """A default model that is not there is named, and how to get one is said."""
    status, output = failed_start(model_dir=model.root, default_model=name)

    assert status == CAN_NOT_START
    assert name.partition("@")[0] in last_line(output)
    assert "default model" in last_line(output)
    assert "shoal models pull" in last_line(output)


def test_missing_model_folder(tmp_path: Path) -> None:
    """It is the folder that is missing, not a model of it, and it is named."""
    status, output = failed_start(model_dir=tmp_path / "nowhere", default_model="tiny")

    assert status == CAN_NOT_START
    assert "tiny" in last_line(output)
    assert str(tmp_path / "nowhere") in last_line(output)
    assert "shoal models pull" in last_line(output)


def test_corrupt_default_model(model: TinyModel) -> None:
    """The file that is not what was prepared is named."""
    (model.folder / "tokenizer.json").write_text("{}")

    status, output = failed_start(model_dir=model.root, default_model="tiny")

    assert status == CAN_NOT_START
    assert "tokenizer.json" in last_line(output)


def test_model_to_preload_that_is_missing(model: TinyModel) -> None:
    """So is any other model of the list."""
    status, output = failed_start(model_dir=model.root, default_model="tiny", preload="tiny,absent")

    assert status == CAN_NOT_START
    assert "absent" in last_line(output)


@without_gpu
def test_device_that_is_not_there(model: TinyModel) -> None:
    """A GPU that was asked for and can not be had stops the start, with the reason."""
    status, output = failed_start(model_dir=model.root, default_model="tiny", device="cuda")

    assert status == CAN_NOT_START
    assert "device cuda can not be had: " in last_line(output)


WRONG = {
    "grpc_port": "65536",
    "max_wait_ms": "-1",
    "device": "tpu",
    "max_padding_waste": "1",
    "log_level": "loud",
    "verify_files": "perhaps",
    "cpu_slots": "two",
}


def test_wrong_settings() -> None:
    """Exit status 2, and every setting, its value and where it came from."""
    status, output = failed_start(**WRONG)

    lines = output.removeprefix("shoal: ").strip().splitlines()
    assert status == WRONG_SETTINGS
    assert sorted(line.partition(":")[0] for line in lines) == sorted(WRONG)
    for line in lines:
        name = line.partition(":")[0]
        assert repr(WRONG[name]) in line
        assert f"(from SHOAL_{name.upper()})" in line


def test_settings_that_contradict_each_other() -> None:
    """Each is right by itself; together they can not be."""
    for settings in (
        {"tls_cert_file": "cert.pem"},
        {"tls_client_ca_file": "ca.pem"},
        {"max_request_bytes": 2000, "max_message_bytes": 1024},
    ):
        status, output = failed_start(**settings)

        assert status == WRONG_SETTINGS
        assert [name for name in settings if name not in last_line(output)] == []


def test_config_file_that_is_missing(tmp_path: Path) -> None:
    """A file that is named must be there."""
    status, output = failed_start(config_file=tmp_path / "absent.toml")

    assert status == WRONG_SETTINGS
    assert "absent.toml" in last_line(output)


def test_unknown_setting_is_a_warning(model: TinyModel) -> None:
    """A typing error in a variable's name is told, and stops nothing."""
    with RunningServer(model_dir=model.root, default_model="tiny", max_wait="5") as running:
        assert any("SHOAL_MAX_WAIT" in line for line in running.output)


CERTIFICATES = Path(__file__).parents[2] / "client" / "certificates"
UNUSABLE = {
    # name: (certificate, key, roots, what the message names)
    "missing": ("absent.pem", "server.key", None, "absent.pem"),
    "garbage": ("README.md", "server.key", None, "README.md"),
    "key of another": ("server.pem", "client.key", None, "client.key"),
    "roots that are none": ("server.pem", "server.key", "README.md", "README.md"),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_certificate_that_can_not_be_used(model: TinyModel, what: str) -> None:
    """The file is named; it is not the port that is at fault."""
    certificate, key, roots, named = UNUSABLE[what]

    status, output = failed_start(
        model_dir=model.root,
        default_model="tiny",
        tls_cert_file=CERTIFICATES / certificate,
        tls_key_file=CERTIFICATES / key,
        tls_client_ca_file=CERTIFICATES / roots if roots else "",
    )

    assert status == CAN_NOT_START
    assert named in last_line(output)
    assert "port" not in last_line(output)


def test_model_beside_a_broken_one_is_served(model: TinyModel) -> None:
    """A model that nobody asked for can not stop the start."""
    broken = make_tiny_model(model.root, "broken")
    (broken.folder / "version.toml").write_text("no")

    with (
        RunningServer(model_dir=model.root, default_model="tiny") as running,
        Connection(running.address) as connection,
    ):
        assert connection.embed("red").dimensions == 8
        assert set(connection.models()) == {"tiny", "broken"}


def test_ipv6_address_is_told_as_clients_write_it(model: TinyModel) -> None:
    """In brackets, so that the ready line can be used as it stands."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")

    with (
        RunningServer(
            model_dir=model.root, default_model="tiny", grpc_host="::1", http_host="::1"
        ) as running,
        Connection(running.address) as connection,
    ):
        assert running.address.startswith("[::1]:")
        assert connection.embed("red").dimensions == 8
        assert running.get("/livez") == "ok\n"

"""Who calls."""

from __future__ import annotations

import hashlib

import pytest

from shoal_server.api.callers import Callers, key_name, read_names

PEER = "ipv4:10.1.2.3:51234"
KEYS = Callers(by_key=True, names={})


def with_header(value: str) -> list[tuple[str, str | bytes]]:
    return [("user-agent", "grpc"), ("authorization", value)]


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        (PEER, "10.1.2.3"),
        ("ipv6:%5B::1%5D:51234", "::1"),
        ("ipv6:[fe80::1%25eth0]:51234", "fe80::1%eth0"),
        ("unix:", "unix"),
        ("unix:/run/shoal.sock", "unix"),
        ("", ""),
    ],
)
def test_without_a_key_the_host_is_the_caller(peer: str, host: str) -> None:
    """Its port, which changes with every connection, is not part of it."""
    assert KEYS.name([], peer) == host


@pytest.mark.parametrize("header", ["Bearer s3cret", "bearer s3cret", "BEARER  s3cret "])
def test_a_key_is_the_caller_wherever_it_comes_from(header: str) -> None:
    """By the beginning of its SHA-256, which does not tell it."""
    digits = hashlib.sha256(b"s3cret").hexdigest()[:12]
    assert KEYS.name(with_header(header), PEER) == f"key:{digits}" == key_name("s3cret")


@pytest.mark.parametrize("header", ["Bearer", "Bearer  ", "Basic dXNlcjpwYXNz", "", "s3cret"])
def test_what_is_no_key_leaves_the_host(header: str) -> None:
    """Other schemes are not ours to read."""
    assert KEYS.name(with_header(header), PEER) == "10.1.2.3"


def test_keys_can_be_left_out_of_it() -> None:
    """Where anybody may send any key, the host tells callers apart."""
    assert Callers(by_key=False, names={}).name(with_header("Bearer a"), PEER) == "10.1.2.3"


def test_the_operator_names_callers() -> None:
    """Keys and hosts alike."""
    names = read_names([f"{key_name('s3cret')}=search", "10.1.2.3=batch", "::1=me"])
    callers = Callers(by_key=True, names=names)
    assert callers.name(with_header("Bearer s3cret"), PEER) == "search"
    assert callers.name([], PEER) == "batch"
    assert callers.name([], "ipv6:%5B::1%5D:1") == "me"

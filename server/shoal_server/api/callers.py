"""Who calls: by the API key that comes with the call, else by the machine it comes from.

A key itself is never kept, told or logged: only the beginning of its SHA-256, or the
name that the operator gave it. The server does not check keys; where callers could make
up any number of them, let a proxy check them, or tell callers by their machines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from urllib.parse import unquote

_KEY_HEADER = "authorization"
_SCHEME = "bearer "
_KEY_DIGITS = 12
"""Of the SHA-256: two of a thousand keys meet once in half a billion times."""


class Callers:
    """Names callers."""

    def __init__(self, *, by_key: bool, names: Mapping[str, str]) -> None:
        """Name callers.

        Args:
            by_key: Whether to look at keys at all.
            names: The operator's, by the name that the caller would have without.
        """
        self._by_key = by_key
        self._names = names

    def name(self, metadata: Iterable[tuple[str, str | bytes]], peer: str) -> str:
        """The caller of an RPC.

        Args:
            metadata: Of the RPC.
            peer: As gRPC has it: `ipv4:127.0.0.1:51234`, `ipv6:%5B::1%5D:51234`, `unix:`.

        Returns:
            The operator's name for it; else `key:` and digits; else the peer's host.
        """
        name = (self._by_key and _key_of(metadata)) or _host(peer)
        return self._names.get(name, name)


def key_name(key: str) -> str:
    """What a caller with this API key is called."""
    return f"key:{hashlib.sha256(key.encode()).hexdigest()[:_KEY_DIGITS]}"


def _key_of(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    for header, value in metadata:
        if header == _KEY_HEADER and isinstance(value, str):
            key = value[len(_SCHEME) :].strip()
            if key and value[: len(_SCHEME)].lower() == _SCHEME:
                return key_name(key)
    return ""


@lru_cache(maxsize=1024)
def _host(peer: str) -> str:
    kind, _, address = peer.partition(":")
    if kind == "ipv6":
        return unquote(address).rpartition(":")[0].strip("[]")
    if kind == "ipv4":
        return address.rpartition(":")[0]
    return kind


def read_names(entries: Iterable[str]) -> dict[str, str]:
    """The operator's names, as the settings hold (and have checked) them.

    Args:
        entries: `CALLER=NAME`.
    """
    parts = (entry.rpartition("=") for entry in entries)
    return {caller: name for caller, _, name in parts}

"""Where newer versions come from. No I/O."""

from __future__ import annotations

from shoal.v1.updates_pb2 import UpdateSource

_PREFIX = "UPDATE_SOURCE_"
_SOURCES = {name.removeprefix(_PREFIX).lower(): name for name in UpdateSource.keys()[1:]}


def update_source(name: str) -> UpdateSource.ValueType:
    """The source of a name; empty: the server's setting.

    Raises:
        ValueError: There is none of that name.
    """
    if not name:
        return UpdateSource.UPDATE_SOURCE_UNSPECIFIED
    if name not in _SOURCES:
        raise ValueError(f"source: {name!r} is not one of {', '.join(_SOURCES)}")
    return UpdateSource.Value(_SOURCES[name])

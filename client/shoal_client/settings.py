"""Settings of a server, as it tells them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoal.v1 import settings_pb2 as pb


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of a server.

    Attributes:
        name: As in the server's documentation.
        value: Now, in words, as `update_settings` takes it.
        changeable: Whether it can be changed while the server runs.
        configured_value: Where it was changed since the start; else None.
        persistent: Whether the changed value is kept over restarts.
    """

    name: str
    value: str
    changeable: bool
    configured_value: str | None
    persistent: bool


def read_settings(response: pb.UpdateSettingsResponse) -> dict[str, Setting]:
    """What an answer says, by name."""
    return {
        each.name: Setting(
            name=each.name,
            value=each.value,
            changeable=each.changeable,
            configured_value=each.configured_value if each.HasField("configured_value") else None,
            persistent=each.persistent,
        )
        for each in response.settings
    }

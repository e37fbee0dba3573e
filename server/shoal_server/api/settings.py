"""UpdateSettings: between its messages and the settings."""

from __future__ import annotations

from shoal.v1 import settings_pb2 as pb
from shoal_server.kept_settings import KeptSettings
from shoal_server.settings import Settings, show


async def update_settings(
    message: pb.UpdateSettingsRequest, settings: KeptSettings
) -> pb.UpdateSettingsResponse:
    """Change what is asked for, and tell what holds then.

    Raises:
        ShoalError: A setting can not be changed, or not to that; none is.
    """
    await settings.update(message.settings, keep=message.persist)
    runtime = settings.runtime
    changeable = runtime.changeable
    response = pb.UpdateSettingsResponse()
    for name in Settings.model_fields:
        now, configured = (getattr(each, name) for each in (runtime.values, runtime.at_start))
        response.settings.add(
            name=name,
            value=show(now),
            changeable=name in changeable,
            configured_value=None if now == configured else show(configured),
            persistent=name in settings.names,
        )
    return response

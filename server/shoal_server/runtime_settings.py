"""The settings as they are now: those that can change while the server runs, and how.

Whoever uses a setting that may change says so, with what to do then. A change is checked
as at the start and takes hold at once, whole or not at all; it lasts until the server
stops, unless it is kept (`kept_settings`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import structlog

from shoal_server.errors import FailedPrecondition, InvalidInput
from shoal_server.settings import Settings, show
from shoal_server.settings_sources import SettingsError, changed_settings

log = structlog.get_logger(__name__)

# It repeats the value, which may be long.
_MESSAGE_CHARACTERS = 500

Apply = Callable[[Settings], None]


@dataclass(frozen=True, slots=True)
class SettingChange:
    """One setting that has another value than it had; values in words."""

    name: str
    before: str
    after: str


class RuntimeSettings:
    """Holds and changes the settings. Belongs to the event loop's thread.

    Attributes:
        at_start: What the server was started with.
        values: What holds now.
    """

    def __init__(
        self, settings: Settings, changed: Callable[[tuple[SettingChange, ...]], None]
    ) -> None:
        """Begin with what the server was started with.

        Args:
            settings: That is.
            changed: Told of every change, just before it takes hold.
        """
        self.at_start = settings
        self.values = settings
        self._changed = changed
        self._applies: list[tuple[frozenset[str], Apply]] = []

    @property
    def changeable(self) -> frozenset[str]:
        """Names of the settings that can be changed."""
        return frozenset().union(*(names for names, _ in self._applies))

    def on_change(self, names: Iterable[str], apply: Apply) -> None:
        """Let these settings be changed.

        Args:
            names: Of settings.
            apply: Makes new values of them hold; it is given all settings, does not wait
                and does not fail.
        """
        self._applies.append((frozenset(names), apply))

    def update(self, texts: Mapping[str, str]) -> tuple[SettingChange, ...]:
        """Change settings.

        Args:
            texts: Values as the command line takes them, by name.

        Returns:
            What is different now.

        Raises:
            InvalidInput: There is no such setting, or its value is not allowed.
            FailedPrecondition: It can not be changed while the server runs.
        """
        after = self.check(texts)
        changes = tuple(_differences(self.values, after))
        if not changes:
            return ()
        # Before a level takes hold that would hide it.
        log.warning("settings_changed", **{each.name: each.after for each in changes})
        names = {change.name for change in changes}
        self.values = after
        # Before what comes of it: models that leave by a shorter time-out, say.
        self._changed(changes)
        for affected, apply in self._applies:
            if affected & names:
                apply(after)
        return changes

    def check(self, texts: Mapping[str, str]) -> Settings:
        """What `update` would make of the settings; arguments and errors are the same."""
        self._check_names(texts)
        try:
            return changed_settings(self.values, texts)
        except SettingsError as error:
            field = f"settings[{error.name}]" if error.name else "settings"
            raise InvalidInput(field, str(error)[:_MESSAGE_CHARACTERS]) from error

    def _check_names(self, names: Iterable[str]) -> None:
        changeable = self.changeable
        for name in names:
            if name not in Settings.model_fields:
                raise InvalidInput(f"settings[{name[:64]}]", "there is no such setting")
            if name not in changeable:
                raise FailedPrecondition(
                    f"{name} can not be changed while the server runs; set it and restart",
                    metadata={"setting": name},
                )


def _differences(before: Settings, after: Settings) -> Iterable[SettingChange]:
    for name in Settings.model_fields:
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            yield SettingChange(name, show(old), show(new))

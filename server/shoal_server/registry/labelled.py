"""What is said of each model and version: its tags, and whether it is deprecated."""

from __future__ import annotations

from collections.abc import Mapping

from shoal_server.core import ModelKey, ModelRef
from shoal_server.registry.labels import Deprecation, Labels

NO_LABELS = Labels()


class Labelled:
    """The labels there are. Belongs to the event loop's thread."""

    def __init__(self, labels: Mapping[str, Labels]) -> None:
        """As they were kept: of models by `name`, of versions by `name@version`."""
        self._labels = dict(labels)

    def of(self, ref: ModelRef) -> Labels:
        """What is said of a model, or of one version; nothing of its own for most."""
        return self._labels.get(str(ref), NO_LABELS)

    def put(self, ref: ModelRef, labels: Labels) -> None:
        """From now on, this is said of a model or a version."""
        if labels == NO_LABELS:
            self._labels.pop(str(ref), None)
        else:
            self._labels[str(ref)] = labels

    def tags_of(self, key: ModelKey) -> tuple[str, ...]:
        """Of a version: its own and its model's, sorted."""
        own, models = self._labels.get(str(key)), self._labels.get(key.name)
        if own is None or models is None:
            return (own or models or NO_LABELS).tags
        return tuple(sorted({*own.tags, *models.tags}))

    def deprecation_of(self, key: ModelKey) -> Deprecation | None:
        """Of a version: its own, else its model's."""
        for name in (str(key), key.name):
            labels = self._labels.get(name, NO_LABELS)
            if labels.deprecation is not None:
                return labels.deprecation
        return None

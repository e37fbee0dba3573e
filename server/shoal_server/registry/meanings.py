"""What names mean, so far as they were asked for: one version, or several by weight."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from shoal_server.core import ModelKey, ModelRef
from shoal_server.registry.prepared import ModelVersion
from shoal_server.registry.routes import Share, Split


@dataclass(frozen=True, slots=True)
class NamedTarget:
    """A model behind a name, and its part of the name's traffic."""

    ref: ModelRef
    weight: int


class Meanings:
    """Names to versions, in memory. Belongs to the event loop's thread."""

    def __init__(self, default_model: str) -> None:
        """No name means anything yet; an empty one will mean what `default_model` does."""
        self._default_model = default_model
        self._by_text: dict[str, ModelVersion] = {}
        self._splits: dict[str, Split[ModelVersion]] = {}
        self.meant: Callable[[ModelKey], None] = lambda key: None
        """Told of each version that a bare name means from now on."""

    def known(self, text: str, routing_key: str = "") -> ModelVersion | None:
        """What `text` stands for, if that was asked before.

        Args:
            text: As `Registry.resolve` takes it.
            routing_key: Where versions share the traffic of an alias, the same key
                always gets the same one; empty: any.
        """
        version = self._by_text.get(text)
        if version is not None:
            return version
        split = self._splits.get(text)
        return None if split is None else split.choose(routing_key)

    def bare(self, name: str) -> ModelVersion | None:
        """What a model's bare name stands for, if that was asked before.

        Nothing where an alias has the name: that was made before the model came.
        """
        version = self._by_text.get(name)
        return version if version is not None and version.key.name == name else None

    def bare_names(self) -> dict[str, ModelKey]:
        """What models' bare names stand for, as far as that was asked before."""
        return {
            text: version.key for text, version in self._by_text.items() if version.key.name == text
        }

    def put(
        self, text: str, targets: Sequence[NamedTarget], versions: Sequence[ModelVersion]
    ) -> None:
        """From now on, `text` means `versions`, in the order of its targets."""
        self.clear(text)  # with a target more than before it is shared now, or the reverse
        if len(versions) == 1:
            self._by_text |= dict.fromkeys(self._synonyms(text), versions[0])
            if versions[0].key.name == text:
                self.meant(versions[0].key)
            return
        split = shared(text, zip(targets, versions, strict=True))
        self._splits |= dict.fromkeys(self._synonyms(text), split)

    def renew(self, fresh: ModelVersion) -> None:
        """Let every name that means this version mean it as it is here."""
        name, version = fresh.key.name, fresh.key.version
        same = [
            text
            for text, known in self._by_text.items()
            if known.key.name == name and known.key.version == version
        ]
        self._by_text |= dict.fromkeys(same, fresh)
        for name, split in self._splits.items():
            self._splits[name] = split.replaced(str(fresh.key), fresh)

    def clear(self, text: str) -> None:
        """Forget what one name means."""
        for each in self._synonyms(text):
            self._by_text.pop(each, None)
            self._splits.pop(each, None)

    def forget(self, is_meant: Callable[[ModelKey], bool]) -> None:
        """Forget the names that mean one such version alone."""
        for text, version in list(self._by_text.items()):
            if is_meant(version.key):
                del self._by_text[text]

    def _synonyms(self, text: str) -> tuple[str, ...]:
        """`text`, and the empty name where that means the same."""
        return (self._default_model, "") if text in (self._default_model, "") else (text,)


def shared(name: str, parts: Iterable[tuple[NamedTarget, ModelVersion]]) -> Split[ModelVersion]:
    """The traffic of a name between its targets, by their weights."""
    shares = [Share(str(target.ref), target.weight, version) for target, version in parts]
    return Split(name, shares)

"""A model does not go while a name is about to mean it, and the reverse.

Both changes are written before they are made. Whoever begins to write claims the model; the
other one is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from shoal_server.errors import FailedPrecondition, ModelNotFound


class Claims:
    """Who is writing what of which model. Belongs to the event loop's thread."""

    def __init__(self) -> None:
        self._named: Counter[str] = Counter()
        self._leaving: set[str] = set()

    @contextmanager
    def naming(self, models: Iterable[str]) -> Iterator[None]:
        """While inside, a name is being given to these models: none of them goes.

        Raises:
            ModelNotFound: One of them is on its way.
        """
        names = set(models)
        for name in sorted(names & self._leaving):
            raise ModelNotFound(f"model {name!r} is being deregistered", metadata={"model": name})
        self._named.update(names)
        try:
            yield
        finally:
            self._named.subtract(names)
            self._named = +self._named

    @contextmanager
    def leaving(self, model: str) -> Iterator[None]:
        """While inside, a model is being deregistered: no name is given to it.

        Raises:
            FailedPrecondition: One is.
        """
        if self._named[model]:
            raise FailedPrecondition(
                f"a name is just being switched to model {model!r}", metadata={"model": model}
            )
        self._leaving.add(model)
        try:
            yield
        finally:
            self._leaving.discard(model)

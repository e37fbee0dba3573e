"""What SOURCE on the command line means."""

from __future__ import annotations

import re
from pathlib import Path

from shoal_server.errors import InvalidInput, ModelNotFound
from shoal_server.preparation.default_model import (
    DEFAULT_MODEL,
    DefaultSource,
    default_manifest,
)
from shoal_server.preparation.errors import SourceNotFound
from shoal_server.preparation.hub import HubSource
from shoal_server.preparation.pypi import PackageSource
from shoal_server.preparation.sources import LocalSource, ModelSource
from shoal_server.registry.repository import ModelRepository

_PYPI = "pypi:"
_FOLDER = re.compile(r"(/|\./|\.\./|~).*|\.{1,2}")
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


def find_source(
    text: str | None, revision: str | None, repository: ModelRepository
) -> tuple[str, ModelSource]:
    """The name a model gets unless the user gives one, and where it comes from.

    Args:
        text: A folder, `pypi:PACKAGE`, a hub id, the name of a model whose `model.toml`
            names its source, or None for the default model.
        revision: Commit, branch or tag of the hub; version of the package.
        repository: Knows the models by name.

    Raises:
        SourceNotFound: It is none of these.
        ModelLoadFailed: The model's `model.toml` can not be read.
    """
    name = text or DEFAULT_MODEL
    if recorded := _recorded_source(name, repository):
        if name == DEFAULT_MODEL and recorded == default_manifest().source:
            return name, DefaultSource.at(revision)
        return name, _parse(recorded, revision)
    source = _parse(name, revision)
    return source.suggested_name, source


def _recorded_source(name: str, repository: ModelRepository) -> str:
    """What `model.toml` names as the source; "" where nothing says."""
    try:
        recorded = repository.model_manifest(name).source
    except (InvalidInput, ModelNotFound):
        recorded = ""
    if not recorded and name == DEFAULT_MODEL:
        return default_manifest().source
    return recorded


def _parse(text: str, revision: str | None) -> ModelSource:
    if text.startswith(_PYPI):
        return PackageSource.parse(text.removeprefix(_PYPI), revision)
    folder = Path(text).expanduser()
    if _FOLDER.fullmatch(text) or folder.is_dir():
        if revision is not None:
            raise SourceNotFound(f"{text} is a folder, which has no revision {revision!r}")
        return LocalSource(folder)
    if _HUB_ID.fullmatch(text):
        return HubSource(text, revision)
    raise SourceNotFound(
        f"{text!r} is no folder, no model with a source in the repository, "
        f"no hub id (org/name) and not {_PYPI}PACKAGE"
    )

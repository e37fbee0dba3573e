"""`shoal models verify` and `remove`: looking after the files of prepared models."""

from __future__ import annotations

from typing import Annotated

import typer

from shoal_server.cli.local import ModelDir, Ref, plain_errors
from shoal_server.core import ModelRef
from shoal_server.errors import InvalidInput, ModelFileCorrupt, ModelLoadFailed, ModelNotFound
from shoal_server.registry.repository import ModelRepository

_FAILED = 1


def verify(
    model_dir: ModelDir,
    ref: Annotated[
        str | None, typer.Argument(metavar="NAME[@VERSION]", help="Default: every version.")
    ] = None,
) -> None:
    """Check the files of prepared versions against their SHA-256.

    Exit 1 when one differs, or when a model.toml does not let its model be served.
    """
    is_whole = True
    with plain_errors():
        repository = ModelRepository(model_dir)
        chosen = _chosen(repository, ref)
        for name in repository.names() if ref is None else [ModelRef.parse(ref).name]:
            try:
                repository.model_manifest(name)
            except ModelLoadFailed as error:
                is_whole = False
                typer.echo(f"shoal: {error}; it can not be served", err=True)
        for name, version in chosen:
            try:
                files = repository.verify(name, version).files
            except ModelFileCorrupt as error:
                is_whole = False
                typer.echo(f"shoal: {error}", err=True)
            else:
                typer.echo(f"{name}@{version}: {len(files)} files are as they were prepared")
                is_whole &= _verify_variants(repository, name, version)
    if not is_whole:
        raise typer.Exit(_FAILED)


def remove(
    ref: Ref,
    model_dir: ModelDir,
    manifest: Annotated[
        bool, typer.Option("--manifest", help="Remove model.toml too: nothing of NAME stays.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove one version, or with a bare NAME all of its versions.

    model.toml, which is yours, stays unless --manifest is given; so `shoal models pull
    NAME` can prepare the model again.
    """
    with plain_errors():
        repository = ModelRepository(model_dir)
        wanted = ModelRef.parse(ref)
        if manifest and wanted.version is not None:
            raise InvalidInput("--manifest", "belongs to the model, not to one version of it")
        chosen = _chosen(repository, ref)
        what = ", ".join(f"{name}@{version}" for name, version in chosen)
        what = " and ".join(part for part in (what, "model.toml" * manifest) if part)
        if not what:
            raise ModelNotFound(f"model {wanted.name!r} has no prepared version")
        if not yes:
            typer.confirm(f"Remove {what} from {model_dir}?", abort=True)
        if manifest:
            repository.remove_model(wanted.name)
        else:
            for name, version in chosen:
                repository.remove(name, version)
    typer.echo(f"removed {what}")


def _chosen(repository: ModelRepository, ref: str | None) -> list[tuple[str, str]]:
    """The versions that a reference means: one, a model's, or all there are."""
    if ref is None:
        names = repository.names()
        return [(name, version) for name in names for version in repository.versions(name)]
    wanted = ModelRef.parse(ref)
    if wanted.version is not None:
        repository.version_folder(wanted.name, wanted.version)
        return [(wanted.name, wanted.version)]
    # Not by its model.toml, which may be broken: that is no reason to keep the model.
    if wanted.name not in repository.names():
        raise ModelNotFound(f"there is no model {wanted.name!r}")
    return [(wanted.name, version) for version in repository.versions(wanted.name)]


def _verify_variants(repository: ModelRepository, name: str, version: str) -> bool:
    """Whether a version's variants are as they were made; says so of each."""
    is_whole = True
    for precision in repository.variants(name, version):
        try:
            files = repository.verify_variant(name, version, precision).files
        except ModelFileCorrupt as error:
            is_whole = False
            typer.echo(f"shoal: {error}", err=True)
        else:
            typer.echo(f"{name}@{version} {precision}: {len(files)} files are as they were made")
    return is_whole

"""`shoal models list`: what is in the model repository."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from shoal_server.cli.local import ModelDir, plain_errors
from shoal_server.cli.output import AsJson, echo_json, megabytes, unfolded
from shoal_server.errors import ShoalError
from shoal_server.registry.capabilities import spoken_languages
from shoal_server.registry.repository import ModelRepository


def list_models(
    model_dir: ModelDir,
    language: Annotated[
        list[str] | None,
        typer.Option(help="Only of this language, as cards have it; may be repeated."),
    ] = None,
    precision: Annotated[str, typer.Option(help="Only with a graph in it: fp32, int8, …")] = "",
    as_json: AsJson = False,
) -> None:
    """List models and their versions; * marks the one that the bare name means.

    A version is broken when its manifest can not be read or a file is missing; what is in the
    files, `shoal models verify` compares.
    Why one is broken, `shoal models show` and --json tell. What a running server has,
    `shoal models find` tells.
    """
    with plain_errors():
        repository = ModelRepository(model_dir)
        rows = [row for name in repository.names() for row in _rows(repository, name)]
        rows = [row for row in rows if row.has(language or (), precision)]
    if as_json:
        echo_json([asdict(row) for row in rows])
    elif not rows:
        typer.echo(f"no models in {model_dir}; `shoal models pull` prepares the default one")
    else:
        _echo_table(rows)


@dataclass(frozen=True, slots=True)
class _Row:
    """One version in the list, or a model without any."""

    name: str
    version: str | None
    is_default: bool
    state: str
    dimensions: int | None = None
    max_tokens: int | None = None
    size_bytes: int | None = None
    license: str = ""
    source: str = ""
    languages: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    error: str = ""

    def has(self, languages: Sequence[str], precision: str) -> bool:
        """Whether it is of all of these languages, and has a graph in this precision."""
        spoken = spoken_languages(self.languages)
        return all(each.lower() in spoken for each in languages) and (
            not precision or precision in self.precisions
        )


def _rows(repository: ModelRepository, name: str) -> list[_Row]:
    versions = repository.versions(name)
    try:
        source = repository.model_manifest(name).source
        default = repository.default_version(name) if versions else None
    except ShoalError as error:
        return [_Row(name, None, is_default=False, state="broken", error=str(error))]
    if not versions:
        return [_Row(name, None, is_default=False, state="not prepared", source=source)]
    return [_row(repository, name, version, default) for version in versions]


def _row(repository: ModelRepository, name: str, version: str, default: str | None) -> _Row:
    is_default = version == default
    try:
        manifest = repository.version_manifest(name, version)
        repository.look_for_files(name, version, manifest.files)
    except ShoalError as error:
        return _Row(name, version, is_default, state="broken", error=str(error))
    return _Row(
        name,
        version,
        is_default,
        state="prepared",
        dimensions=manifest.dimensions,
        max_tokens=manifest.max_tokens,
        size_bytes=repository.size_bytes(name, version),
        license=manifest.license,
        source=f"{manifest.source.kind}:{manifest.source.location}",
        languages=manifest.languages,
        precisions=(manifest.precision, *repository.variants(name, version)),
    )


def _echo_table(rows: Sequence[_Row]) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("model", "version", "dimensions", "tokens", "size", "license", "state"):
        is_number = title in {"dimensions", "tokens", "size"}
        table.add_column(title, justify="right" if is_number else "left", no_wrap=True)
    for row in rows:
        table.add_row(
            row.name,
            (row.version or "") + "*" * row.is_default,
            str(row.dimensions or ""),
            str(row.max_tokens or ""),
            megabytes(row.size_bytes) if row.size_bytes else "",
            escape(row.license),
            escape(row.state),
        )
    unfolded().print(table)

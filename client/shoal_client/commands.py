"""`shoal embed`: from texts, or lines, to vectors in a file or pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from shoal_client.connection import DEFAULT_ADDRESS
from shoal_client.errors import PermissionDeniedError, ShoalError, UnimplementedError
from shoal_client.output import JsonlWriter, NpyWriter, Writer, complete_file, rewindable
from shoal_client.requests import EmbedOptions
from shoal_client.results import no_embeddings
from shoal_client.retry import RetryPolicy
from shoal_client.sync.client import Client

_INTERRUPTED = 130  # 128 + SIGINT
_BROKEN_PIPE = 141  # 128 + SIGPIPE
_TOLD_WAIT_S = 1.0


class OutputFormat(StrEnum):
    """How vectors are written."""

    JSONL = "jsonl"
    NPY = "npy"


class EncodingName(StrEnum):
    """The names of `requests.Encoding`, as the command line needs them."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"
    UBINARY = "ubinary"


def _told_retries() -> RetryPolicy:
    """As always, but where it takes a while somebody who waits is told why, once."""
    told: set[str] = set()

    def tell(error: ShoalError, delay_s: float) -> None:
        if delay_s >= _TOLD_WAIT_S and error.message not in told:
            told.add(error.message)
            typer.echo(f"shoal: {error}; trying again in {delay_s:.1f} s", err=True)

    return RetryPolicy(on_wait=tell)


def embed(
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts. Default: the lines of standard input.")
    ] = None,
    address: Annotated[
        str,
        typer.Option(
            envvar="SHOAL_ADDRESS",
            help="HOST:PORT of the server; several with commas. Default: where `shoal serve` would "
            "listen here.",
            show_default=False,
        ),
    ] = DEFAULT_ADDRESS,
    model: Annotated[
        str, typer.Option(help="name, name@version or alias. Default: the server's.")
    ] = "",
    output_format: Annotated[
        OutputFormat | None,
        typer.Option("--format", help="Default: npy for an --output of that suffix, else jsonl."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File. Default: standard output.")
    ] = None,
    dimensions: Annotated[
        int | None, typer.Option(help="Keep the first so many. Default: all.", min=1)
    ] = None,
    encoding: Annotated[
        EncodingName, typer.Option(help="How vectors travel and are written.")
    ] = EncodingName.FLOAT32,
    truncate: Annotated[
        bool, typer.Option("--truncate/--no-truncate", help="Cut texts that are too long.")
    ] = True,
    prompt_name: Annotated[str, typer.Option(help="Prompt of the model.")] = "",
    routing_key: Annotated[
        str,
        typer.Option(help="Where versions share an alias: the same key gets the same version."),
    ] = "",
    keep_alive_s: Annotated[
        float | None,
        typer.Option(
            "--keep-alive",
            help="Seconds that the model stays in the server's memory after its last use; 0 "
            "releases it, a negative number keeps it. Default: as it was.",
        ),
    ] = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout", help="Seconds for each request.", min=0.001)
    ] = 60.0,
    tls: Annotated[bool, typer.Option("--tls", help="Connect with TLS.")] = False,
) -> None:
    """Embed texts, or the lines of standard input, however many there are.

    JSONL has one object a line, in the order of the texts: index, model (its name@version),
    tokens, truncated, embedding, and for int8 the scale of its numbers. NPY is one array; with int8
    it lacks the scales.
    """
    options = EmbedOptions(
        model=model,
        dimensions=dimensions,
        encoding=encoding.value,
        truncate=truncate,
        prompt_name=prompt_name,
        routing_key=routing_key,
        keep_alive_s=keep_alive_s,
    )
    with _reported_errors(), ExitStack() as stack:
        client = Client(address, tls=tls, timeout_s=timeout_s, retry=_told_retries())
        stack.enter_context(client)
        writer = stack.enter_context(_open_writer(output, output_format))
        _run(client, texts, writer, options)


def _run(client: Client, texts: list[str] | None, writer: Writer, options: EmbedOptions) -> None:
    if texts:
        chunks = client.embed_chunks(texts, **options)
    elif sys.stdin.isatty():  # someone types, and wants an answer to each line
        chunks = client.embed_chunks(_stdin_lines(), chunk_size=1, max_in_flight=1, **options)
    else:
        chunks = client.embed_chunks(_stdin_lines(), **options)
    is_empty = True
    told = ""
    for chunk in chunks:
        writer.write(chunk)
        is_empty = False
        if chunk.deprecation not in ("", told):
            told = chunk.deprecation
            typer.echo(f"shoal: {told}", err=True)
    if is_empty and isinstance(writer, NpyWriter):
        _write_no_rows(client, writer, options)


def _write_no_rows(client: Client, writer: Writer, options: EmbedOptions) -> None:
    """Give an array without rows its width, such that it can be joined with others."""
    dimensions = options.get("dimensions")
    if dimensions is None:
        try:
            dimensions = client.get_model(options["model"]).dimensions
        except (PermissionDeniedError, UnimplementedError):
            return  # the width stays 0: embedding was allowed, looking is not
    if dimensions:
        writer.write(no_embeddings(dimensions, options["encoding"]))


def _stdin_lines() -> Iterator[str]:
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            yield line.rstrip(b"\r\n").decode()
        except UnicodeDecodeError:
            raise ValueError(f"line {number} of standard input is not UTF-8") from None


@contextmanager
def _open_writer(output: Path | None, output_format: OutputFormat | None) -> Iterator[Writer]:
    if output_format is None:
        is_npy = output is not None and output.suffix == ".npy"
        output_format = OutputFormat.NPY if is_npy else OutputFormat.JSONL
    with ExitStack() as stack:
        writer: Writer
        file = sys.stdout.buffer if output is None else stack.enter_context(complete_file(output))
        if output_format is OutputFormat.JSONL:
            writer = JsonlWriter(file)
        else:
            if file.isatty():
                raise typer.BadParameter("npy is binary: use --output, or redirect the output")
            # Standard output may be appended to a file, so it is not rewound either.
            if output is None or not file.seekable():
                file = stack.enter_context(rewindable(file))
            writer = NpyWriter(file)
        yield writer
        writer.finish()


@contextmanager
def _reported_errors() -> Iterator[None]:
    """One line on standard error, and the exit status that shells expect."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(_INTERRUPTED) from None
    except BrokenPipeError:
        # What is left in the buffer would raise again at exit (Python docs: signal).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(_BROKEN_PIPE) from None
    except (ShoalError, OSError, ValueError) as error:
        typer.echo(f"shoal: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1) from None

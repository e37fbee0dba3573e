"""`make demo`: start a server, embed real sentences through the SDK, show them, stop.

Exits 0 when all of it worked; otherwise says what did not.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from shoal_client import Client, Embeddings, ShoalError

SENTENCES = (
    "A cat sleeps in the sun.",
    "A kitten is napping on the warm windowsill.",
    "The central bank raised interest rates again.",
    "Mortgages are getting more expensive this year.",
    "How do I bake sourdough bread?",
)
SHOAL = Path(sys.executable).with_name("shoal")


def main() -> int:
    """Run the demo; the exit status."""
    command = [str(SHOAL), "serve", "--grpc-port", "0", "--http-port", "0"]
    command += ["--log-level", "warning"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address = _wait_until_ready(process)
        if address is None:
            print("demo: the server did not start; see above", file=sys.stderr)
            return 1
        with Client(address) as client:
            _show(client.embed(SENTENCES))
    except ShoalError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        process.terminate()
        status = process.wait()
    if status != 0:
        print(f"demo: the server ended with status {status}", file=sys.stderr)
    return 1 if status else 0


def _wait_until_ready(process: subprocess.Popen[str]) -> str | None:
    """The address on the server's ready line; None when it ended without one."""
    assert process.stdout is not None  # noqa: S101
    for line in process.stdout:
        if line.startswith("shoal: ready "):
            print(line, end="")
            return line.split("grpc=")[1].split()[0]
    return None


def _show(answer: Embeddings) -> None:
    vectors = answer.vectors
    similarity = vectors @ vectors.T
    table = Table(title=f"cosine similarity, {answer.model}@{answer.version}", box=None)
    table.add_column("")
    for number in range(1, len(SENTENCES) + 1):
        table.add_column(str(number), justify="right")
    for number, (sentence, row) in enumerate(zip(SENTENCES, similarity, strict=True), start=1):
        cells = (
            f"[bold]{value:.2f}[/]" if 0.4 <= value < 0.999 else f"{value:.2f}" for value in row
        )
        table.add_row(f"{number} {sentence}", *cells)
    console = Console(width=100)
    console.print(table)
    timings = answer.timings
    console.print(
        f"{len(SENTENCES)} sentences, {int(np.sum(answer.token_counts))} tokens, "
        f"{vectors.shape[1]} dimensions in {timings.total_us / 1000:.1f} ms "
        f"(queue {timings.queue_us / 1000:.1f}, tokenize {timings.tokenize_us / 1000:.1f}, "
        f"inference {timings.inference_us / 1000:.1f}; batch of {timings.batch_size})"
    )


if __name__ == "__main__":
    sys.exit(main())

"""Telling the person who waits what is being done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, Self

from rich.console import Console
from rich.markup import escape


class Progress(Protocol):
    """Where a preparation reports to. Called from one thread."""

    def step(self, text: str) -> None:
        """A new step begins."""

    def detail(self, text: str) -> None:
        """What the step does just now; may be overwritten by the next."""

    def bars(self) -> AbstractContextManager[bool]:
        """Lend the terminal to progress bars; gives False where bars are unwelcome."""


class ConsoleProgress:
    """Steps as lines on a console; on a terminal also a spinner with the latest detail."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = console.status("")

    def __enter__(self) -> Self:
        self._resume()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def step(self, text: str) -> None:
        """Print the step's line."""
        self._status.update("")
        self._console.print(f"• {escape(text)}", highlight=False, soft_wrap=True)

    def detail(self, text: str) -> None:
        """Show the detail beside the spinner, cut to the terminal's width."""
        width = max(20, self._console.width - 6)
        self._status.update(f"[dim]{escape(text[:width])}[/dim]")

    @contextmanager
    def bars(self) -> Iterator[bool]:
        """Stop the spinner, which would draw over the bars."""
        self._status.stop()
        yield self._console.is_terminal
        self._resume()

    def _resume(self) -> None:
        if self._console.is_terminal:
            self._status.start()

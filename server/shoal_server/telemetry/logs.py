"""The log: where it goes, its form, and what every line of a request has in it."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from contextvars import ContextVar

import structlog

# Of the request that the current task works on; in every log line of it.
request_id: ContextVar[str] = ContextVar("request_id")


def configure_logging(level: str, log_format: str) -> None:
    """Send structlog to standard error, as JSON or for people.

    Args:
        level: Least level that is logged.
        log_format: `json`, `console`, or `auto`: console on a terminal.
    """
    for_people = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if for_people else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            _add_request_id,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            *([] if for_people else [structlog.processors.format_exc_info]),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=lambda *_: _StandardError(),
        cache_logger_on_first_use=False,
    )


def _add_request_id(
    _: structlog.typing.WrappedLogger, __: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    if (value := request_id.get(None)) is not None:
        event["request_id"] = value
    return event


class _StandardError:
    """Writes lines; those that nobody reads any longer are lost.

    A request must not fail because the log's reader is gone.
    """

    def msg(self, message: str) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.write(message + "\n")
            sys.stderr.flush()

    debug = info = warning = error = critical = msg

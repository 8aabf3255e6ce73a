"""The log: one record a line, for a person at a console or as JSON for a program.

Much of what is logged was written by strangers. So nothing that is not printable reaches the log as it came, no
value is longer than 256 characters, and no text can look like a field or a record of its own. And mail goes on when
the log cannot: a record that cannot be written is dropped and counted.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any, Literal

import structlog
from structlog.typing import FilteringBoundLogger

from guerrilla.log_records import Console, Output, Records, json_line, plain

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
    "panic": logging.CRITICAL,
}


class Log:
    """An open log. Write with ``logger``, a structlog logger of its own: nothing global is configured.

    ``log_file`` is ``stderr``, ``stdout``, ``off`` or the path of a file, which is appended to; a new one is made
    readable by owner and group. ``log_format`` is ``console``, ``json``, or ``auto``: JSON for a file.

    Raises:
        OSError: if the file cannot be opened.
        KeyError: if there is no such level.
    """

    def __init__(
        self,
        log_file: str = "stderr",
        log_level: str = "info",
        log_format: Literal["auto", "console", "json"] = "auto",
    ) -> None:
        level = _LEVELS[log_level]
        self._output = Output(log_file)
        render: Callable[[dict[str, Any]], bytes]
        if log_format == "console" or (log_format == "auto" and not self._output.is_file):
            render = Console(colours=self._output.is_terminal)
        else:
            render = json_line
        if log_file == "off":
            self.logger = _logger(_Silence(), logging.CRITICAL)
        else:
            self.logger = _logger(Records(render, self._output, informs=level <= logging.INFO), level)

    @property
    def dropped(self) -> int:
        """How many records could not be written."""
        return self._output.dropped

    def reopen(self) -> None:
        """Open the file anew, after it was renamed. Other logs than files stay as they are.

        Raises:
            OSError: if it cannot be opened; then the old one stays in use.
        """
        self._output.reopen()

    def close(self) -> None:
        """Close the file. What is logged afterwards is dropped."""
        self._output.close()


def as_logger(given: FilteringBoundLogger | logging.Logger) -> FilteringBoundLogger:
    """Return a logger that a program has given, in the form that is used here.

    To a logger of the standard library goes one text a record, with the fields in it, and as safe to print as any here.
    Raises TypeError for what is neither this nor structlog's.
    """
    if isinstance(given, logging.Logger):
        return _logger(_Standard(given), logging.DEBUG)
    if not callable(getattr(given, "bind", None)):
        raise TypeError(f"found {given!r} for a log; meant: a logger of structlog, or of the standard library")
    return given


def _logger(records: Records | _Silence | _Standard, level: int) -> FilteringBoundLogger:
    logger: FilteringBoundLogger = structlog.wrap_logger(
        records,
        processors=[],
        wrapper_class=type("Logger", (_Direct, structlog.make_filtering_bound_logger(level)), {}),
        context_class=dict,
    ).bind()
    return logger


class _Direct:
    """Goes before structlog's class of a level, which filters and binds, and makes the record without its processors.

    A chain of them would cost as much as all else that is done for a line.
    """

    _logger: Records | _Silence | _Standard
    _context: dict[str, Any]

    def _proxy_to_logger(self, method: str, event: object = "", /, **fields: Any) -> None:
        self._logger.write(method, event, self._context | fields if self._context else fields)


class _Silence:
    """Takes what goes nowhere."""

    def write(self, method: str, event: object, fields: dict[str, Any]) -> None: ...


class _Standard:
    """Gives records to a logger of the standard library, which says itself when that was, and how bad it is."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._records = Records(json_line, Output("off"))

    def write(self, method: str, event: object, fields: dict[str, Any]) -> None:
        with contextlib.suppress(Exception):  # mail goes on when the log cannot
            record = self._records.record(method, event, fields)
            del record["timestamp"]
            level = _LEVELS.get(record.pop("level"), logging.CRITICAL)
            self._logger.log(level, "%s", plain(record))

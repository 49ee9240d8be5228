"""A log of JSON lines in a file that turns over, readable by its owner alone."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path

from fedshift.protocol.words import visible

_BYTES = 10 * 2**20
_FILES = 5


class _Lines(logging.Formatter):
    """A line of JSON a record."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "from": record.name,
            "told": visible(record.getMessage()),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class _Private(RotatingFileHandler):
    def _open(self) -> object:  # type: ignore[override]
        return os.fdopen(
            os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            "a",
            encoding="utf-8",
            errors="backslashreplace",
        )


@contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """Within it, what is logged goes to ``path`` and at most four older files of 10 MiB: all of
    fedshift from level INFO on, of others what went wrong."""
    # On a full disk a line is lost, and nothing else.
    logging.raiseExceptions = False
    handler = _Private(path, maxBytes=_BYTES, backupCount=_FILES - 1)
    handler.setFormatter(_Lines())
    for name, level in (("fedshift", logging.INFO), ("flwr", logging.WARNING)):
        logging.getLogger(name).setLevel(level)
    logging.getLogger("flwr").handlers.clear()  # Its own writes to the terminal.
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        with suppress(OSError):
            handler.close()

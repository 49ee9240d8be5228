"""A log of JSON lines in a file that turns over, readable by its owner alone."""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path

_BYTES = 5_000_000
_FILES = 5
_QUIET = ("flwr", "httpx", "httpcore", "uvicorn", "asyncio", "grpc")


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "from": record.name,
            "said": record.getMessage(),
        }
        if record.exc_info:
            entry["trace"] = self.formatException(record.exc_info)
        return json.dumps(entry)


class _Private(RotatingFileHandler):
    def _open(self) -> object:  # type: ignore[override]
        return os.fdopen(
            os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            "a",
            encoding="utf-8",
            errors="backslashreplace",
        )


def log_to(path: Path) -> None:
    """Log everything of this process from level INFO on to ``path``, at most five files of 5 MB
    each; other libraries from WARNING on."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # On a full disk a line is lost, and nothing else.
    logging.raiseExceptions = False
    handler = _Private(path, maxBytes=_BYTES, backupCount=_FILES - 1)
    handler.setFormatter(_Json())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for name in _QUIET:
        logger = logging.getLogger(name)
        # Flower's has a handler of its own, which writes to the terminal.
        logger.handlers.clear()
        logger.setLevel(logging.WARNING)
        logger.propagate = True

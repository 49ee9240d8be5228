"""The lock of a run folder: held by the process that opened it and by every worker that writes
there, so that it is free only when the last of them is gone.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.reduction import DupFd
from pathlib import Path

from fedshift import UserError

_PATIENCE_S = 3.0
"""How long to wait for a lock: the workers of a run that was killed need a moment to end."""
_POLL_S = 0.05

_held: list[int] = []
"""The descriptors of this process's locks, as the operating system has them: by process."""


@contextmanager
def alone_in(out: Path, busy: str | None = None) -> Iterator[int]:
    """Hold ``out`` against a second run; the lock goes with the process and its workers, however
    they end. Yields the descriptor that holds it, for a worker to inherit.

    Raises :class:`UserError` when ``out`` is no folder, or another run holds it: with the sentence
    ``busy``, where there is one.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        folder = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UserError(_unusable(out, error)) from error
    try:
        _lock(folder, busy or f"another run is writing to {out}; choose another out=DIR")
        _held.append(folder)
        yield folder
    finally:
        if folder in _held:
            _held.remove(folder)
        os.close(folder)


def _lock(folder: int, busy: str) -> None:
    end = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > end:
                raise UserError(busy) from error
        time.sleep(_POLL_S)


def _unusable(out: Path, error: OSError) -> str:
    for place in (out, *out.parents):
        if place.is_symlink() and not place.exists():
            return (
                f"{out} cannot be used as a folder ({place} is a link to {place.readlink()}, "
                "which does not exist); make that folder or choose another out=DIR"
            )
    return f"{out} cannot be used as a folder ({error.strerror}); choose another out=DIR"


class Locks:
    """The locks of the process that starts a worker; the worker holds them too once it has this."""

    def __getstate__(self) -> list[object]:
        """Copies of the descriptors for the process that is being started."""
        return [DupFd(folder) for folder in _held]

    def __setstate__(self, copies: list[object]) -> None:
        """Take the copies; they stay open as long as this process lives."""
        for copy in copies:
            copy.detach()  # type: ignore[attr-defined]

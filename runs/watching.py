"""Whoever starts a run hears of it by two callables: a run itself prints nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from fedshift.server.progress import Progress, Silent

Tell = Callable[[str], None]
"""Takes a sentence worth keeping on the screen."""

Watch = Callable[[str], AbstractContextManager[Progress]]
"""Opens a watcher for a run of this title."""


def silent(sentence: str) -> None:
    """Tell nobody."""


def unwatched(title: str) -> AbstractContextManager[Progress]:
    """Let nobody watch."""
    return nullcontext(Silent())

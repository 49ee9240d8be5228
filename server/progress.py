"""What a long run tells whoever watches it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A watcher: a live bar on a terminal, plain lines elsewhere, or nobody."""

    def expect(self, units: int) -> None:
        """Say how many units of work are ahead in all."""

    def advance(self, what: str) -> None:
        """Say that one unit is done, and what it was."""

    def say(self, sentence: str) -> None:
        """Tell something worth keeping on the screen."""


class Silent:
    """Nobody watches."""

    def expect(self, units: int) -> None:
        """Ignore."""

    def advance(self, what: str) -> None:
        """Ignore."""

    def say(self, sentence: str) -> None:
        """Ignore."""

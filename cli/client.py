"""``fedshift client``: what a site's own staff asks of it."""

from __future__ import annotations

from pathlib import Path

from fedshift.cli.console import PlainConsole
from fedshift.client.pseudonyms import resolve


def who(code: str, folder: Path) -> None:
    """Print the subject or case that ``code`` stands for at the site with that ``folder``."""
    PlainConsole().tell(resolve(folder, code))

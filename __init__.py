"""fedshift: federated, multi-site learning across scanner vendors and hospitals.

This module holds what every part shares and imports nothing heavy: the error a user can mend,
which names sites can have, and the derivation of seeds.
"""

from __future__ import annotations

import hashlib
from importlib import import_module
from typing import TypeVar

__version__ = "0.1.0"


_Class = TypeVar("_Class", bound=type)


class UserError(Exception):
    """Something the user can mend.

    The message is one sentence that names the file or key and the way out. The command
    line prints it without a traceback and exits with code 2.
    """


class Tellable(UserError):
    """A :class:`UserError` whose sentence names no file, subject or host, so that it may leave the
    site where it arose."""


LONGEST_SITE_NAME = 200
"""In bytes of UTF-8: a file system takes names of 255, and ours say more than the site."""


def unusable_site_name(name: str) -> str | None:
    """Why ``name`` can be no site's, as the end of a sentence about it; None where it can. A site's
    name is that of its folder, too, and ``::`` parts it from what it publishes."""
    if name in ("", ".", "..") or "::" in name or any(mark in name for mark in "/\\\0"):
        return "is no name for a folder"
    if len(name.encode(errors="replace")) > LONGEST_SITE_NAME:
        return f"is longer than {LONGEST_SITE_NAME} bytes, and files are called after sites"
    if any("\ud800" <= mark <= "\udfff" for mark in name):
        return "holds what is no Unicode"
    return None


def derive_seed(*keys: str | int) -> int:
    """Return a 63-bit seed for the purpose named by ``keys``.

    Every random draw of a run has its own generator, seeded by (run seed, site name, round,
    purpose), so that no draw depends on how many workers there are or in which order they ran.
    """
    text = "\x1f".join(str(key) for key in keys)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def register(cls: _Class, name: str | None = None) -> _Class:
    """Make a subclass of ``Method``, ``Strategy``, ``LocalRule`` or ``Task`` known in this process,
    as in a notebook; return it, so that this may decorate it. A config calls it ``name``, by
    default the class's in small letters: ``FedAvgM`` is ``fed_avg_m``.

    Other processes do not know it: a run needs ``engine.workers=1``. Raises :class:`UserError` for
    a class that is none of these or not whole, and for a name that is another's.
    """
    import_module("fedshift.runs.plugins").register(cls, name)
    return cls

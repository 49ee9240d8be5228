"""Texts that look alike: one name that was typed, pasted or exported in several ways."""

from __future__ import annotations

import re
import unicodedata

_INVISIBLE = re.compile("[\u00ad\u200b\u2060\ufeff]")
_HYPHENS = str.maketrans("\u2010\u2011", "--")


def spelling(text: str) -> str:
    """``text`` composed (Unicode NFC), its spaces and hyphens plain, its ends stripped.

    Two texts of one spelling look the same on paper, so they are the same.
    """
    composed = _INVISIBLE.sub("", unicodedata.normalize("NFC", text)).translate(_HYPHENS)
    return "".join(" " if mark.isspace() else mark for mark in composed).strip()


def tidy(text: str) -> str:
    """The spelling with single spaces: what a name is kept, shown and asked for as."""
    return " ".join(spelling(text).split())


def meant(text: str) -> str:
    """The name that a cell holds, tidied; empty where it holds none, which BIDS writes ``n/a`` and
    pandas ``nan``."""
    name = tidy(text)
    return "" if name.lower() in ("n/a", "nan") else name


def fold(text: str) -> str:
    """What spellings share that differ only in capitals or spaces."""
    return "".join(spelling(text).casefold().split())


def letters(text: str) -> str:
    """What spellings share that differ only in capitals, spaces and marks: ``Spacing (mm)`` and
    ``spacing_mm``."""
    return "".join(mark for mark in fold(text) if mark.isalnum())

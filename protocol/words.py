"""Numbers and names in sentences, and names that may hold anything."""

from __future__ import annotations

import re
from collections.abc import Sequence

NAMED = 3
"""A sentence names no more than this of many sites, and counts the rest."""

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""What commands a terminal or turns the order of the text around it, and halves of surrogates;
tabs and line feeds are left."""


def count(number: int, noun: str) -> str:
    """``1 site``, ``2 sites``."""
    return f"{number} {noun if number == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """Several of a noun: ``masks``, ``classes``, ``categories``."""
    if noun.endswith(("s", "x", "ch", "sh")):
        return f"{noun}es"
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}s"


def some(names: Sequence[str], most: int = NAMED) -> str:
    """``a, b, c and 497 more``; up to ``most`` names, or one more, are all named."""
    if len(names) <= most + 1:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"


def visible(text: str) -> str:
    """``text`` with a mark for every character that a terminal would obey instead of showing.

    One character stands for one, so that positions in the text keep their meaning: the control
    pictures of Unicode for C0 and DEL, the replacement character for the others.
    """
    return _HIDDEN.sub(_mark, text)


def _mark(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else "\ufffd"


def short(text: str, most: int = 40) -> str:
    """``text`` on one line and in ``most`` characters: a longer one loses its middle, since names
    tend to differ at their ends."""
    line = visible(" ".join(text.split()))
    if len(line) <= most:
        return line
    tail = most // 3
    return f"{line[: most - tail - 1]}…{line[-tail:]}"

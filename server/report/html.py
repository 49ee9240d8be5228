"""The parts that every report page is made of.

Text that comes from a run passes through :func:`html.escape`; on top of that a page's
content-security policy allows no request and no script but its own.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from string import Template

import numpy as np

from fedshift.server.report.figures import hex_color, is_dark


def document(
    title: str, facts: str, headline: str, sections: Iterable[str], style: str = ""
) -> str:
    """Return a whole page that needs no other file and no network. ``title`` is text, the rest
    HTML; empty sections are left out, and ``style`` comes after the pages' own."""
    return Template(_text("page.html")).substitute(
        title=escape(title),
        facts=facts,
        headline=headline,
        sections="\n".join(section for section in sections if section),
        style=_text("page.css") + style,
        script=_text("page.js"),
        policy=policy(),
    )


def policy() -> str:
    """The pages' content-security policy: no request, and no script but their own."""
    digest = base64.b64encode(hashlib.sha256(_text("page.js").encode()).digest()).decode()
    return (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )


def _text(name: str) -> str:
    return files("fedshift.server.report").joinpath(name).read_text(encoding="utf-8")


def breakable(name: str) -> str:
    """A name that may be broken after an underscore."""
    return escape(name).replace("_", "_<wbr>")


def section(title: str, body: str, anchor: str = "") -> str:
    """A part of the page with its heading; ``body`` is HTML."""
    mark = f' id="{anchor}"' if anchor else ""
    return f"<section{mark}><h2>{escape(title)}</h2>{body}</section>"


def figure(png: bytes, name: str, caption: str = "") -> str:
    """A picture within the page."""
    data = base64.b64encode(png).decode()
    said = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    # Drawn at 1.5 device pixels for each pixel of the page; a PNG holds its width at byte 16.
    width = round(int.from_bytes(png[16:20], "big") / 1.5)
    return (
        f'<figure><img alt="{escape(name)}" width="{width}" src="data:image/png;base64,{data}">'
        f"{said}</figure>"
    )


def shaded(color: np.ndarray) -> str:
    """The attributes of a heat map's cell of this colour (RGBA in 0..1)."""
    return f'class="cell{" dark" if is_dark(color) else ""}" style="background:{hex_color(color)}"'

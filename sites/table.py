"""Tables of text as people save them: encodings, delimiters, quotes and empty rows."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE, BOM_UTF32_LE
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from fedshift import UserError
from fedshift.sites.names import tidy

DELIMITERS = {".tsv": "\t", ".csv": ","}
# The marks of UTF-32 begin with those of UTF-16, so they come first.
_ENCODINGS = {
    BOM_UTF8: "utf-8-sig",
    BOM_UTF32_LE: "utf-32",
    BOM_UTF32_BE: "utf-32",
    BOM_UTF16_LE: "utf-16",
    BOM_UTF16_BE: "utf-16",
}


_DECIMAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?", re.ASCII | re.I)


def decimal(text: str) -> float:
    """The number that ``text`` writes with a decimal point; :class:`ValueError` where it is none.

    Python's own reading takes ``1_2``, ``-nan`` and ``infinity`` for numbers, too."""
    if not _DECIMAL.fullmatch(text) or math.isinf(value := float(text)):
        raise ValueError(f"{text!r} is no number")
    return value


def read_table(
    path: Path, wanted: Collection[str]
) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The header of a .tsv or .csv file, and each row with the number of its (last) line.

    Text is UTF-8, or what a byte-order mark says. The delimiter is that of a first line
    ``sep=``, or of tab, comma and semicolon the one that finds most of the columns ``wanted`` in
    the header; on a tie the suffix's own. Column names are tidied, cells stripped, rows without
    any content skipped; cells that a short row lacks are empty.

    Raises:
        UserError: no table of text, a wanted column that stands twice, a row with more cells than
            the header, content under no name, or a quotation mark that is not closed.
    """
    own = DELIMITERS.get(path.suffix.lower())
    if own is None:
        raise UserError(f"{path} must be a .tsv or .csv table; save it as one.")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); mend it.") from None
    text = text_of(path, data)
    named = re.match(r'"?sep=([^"\r\n])"?[ \t,;]*(?:\r\n|\r|\n|$)', text, re.I)
    skipped = 0
    if named:
        text, skipped = text[named.end() :], 1
        delimiter = named[1]
    else:
        # max takes the first of equals.
        candidates = [own, *sorted({"\t", ",", ";"} - {own})]
        delimiter = max(candidates, key=lambda mark: _found(text, mark, wanted))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    rows: list[tuple[int, dict[str, str]]] = []
    try:
        for record in reader:
            cells = [cell.strip() for cell in record]
            if not any(cells):
                continue
            number = reader.line_num + skipped
            if not header:
                header = [tidy(name) for name in cells]
                _check_header(path, header, wanted)
                continue
            if len(cells) > len(header):
                raise UserError(
                    f"{path}, line {number} has {len(cells)} cells, the header {len(header)}; put "
                    "a cell that holds the delimiter in quotation marks, and take out the extra "
                    "ones."
                )
            for place, cell in enumerate(cells):
                if cell and not header[place]:
                    raise UserError(
                        f"{path}, line {number}: cell {place + 1} is filled, but its column has no "
                        "name in the header; name it or empty it."
                    )
            cells += [""] * (len(header) - len(cells))
            rows.append((number, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        line = reader.line_num + skipped
        raise UserError(f"{path}, line {line}: {error}; mend its quotation marks.") from None
    return [name for name in header if name], rows


def text_of(path: Path, data: bytes) -> str:
    """The text of the file ``path``, whose bytes are ``data``: UTF-8, or what a byte-order mark
    says. Raises :class:`UserError` where it is none."""
    encoding = next((name for mark, name in _ENCODINGS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
        if "\0" in text:
            raise ValueError("it holds the byte 0")
    except ValueError as error:
        reason = str(error)
        if isinstance(error, UnicodeDecodeError) and encoding == "utf-8":
            line = data.count(b"\n", 0, error.start) + 1
            reason = f"line {line} is not UTF-8"
        raise UserError(
            f"{path} cannot be read ({reason}); save it as UTF-8 text (Excel: CSV UTF-8)."
        ) from None
    return text


def json_of(text: str) -> Any:
    """What JSON says. Raises :class:`ValueError` where it is damaged, and for a key that an object
    has twice, of which the last would count."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for name, times in Counter(tidy(key) for key, _ in pairs).items():
            if times > 1:
                raise ValueError(f"an object has the key {name!r} twice")
        return dict(pairs)

    return json.loads(text, object_pairs_hook=once)


def _found(text: str, delimiter: str, wanted: Collection[str]) -> int:
    """How many of ``wanted`` the header holds when it is cut at ``delimiter``."""
    try:
        for record in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter):
            names = {tidy(name) for name in record}
            if names - {""}:
                return len(names & set(wanted))
    except csv.Error:
        pass
    return 0


def _check_header(path: Path, header: list[str], wanted: Collection[str]) -> None:
    for name in wanted:
        if header.count(name) > 1:
            raise UserError(
                f"{path} has {header.count(name)} columns called {name!r}; rename all but one."
            )

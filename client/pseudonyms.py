"""Codes in the place of the names of subjects and cases, which the site alone can resolve."""

from __future__ import annotations

import hmac
import json
import os
import secrets
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from fedshift import UserError
from fedshift.protocol.storage import append_lines

_KEY = "pseudonyms.key"
_BOOK = "pseudonyms.jsonl"
_KEY_BYTES = 32
_DIGITS = 20


class Pseudonyms:
    """A site's codes: HMAC-SHA256 of a name under a secret key, 80 bits in hexadecimal.

    The key and the book of the codes that were given out lie in the site's ``folder``, readable by
    its account alone; as long as the key stays, a name has the same code in every run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._given: set[str] | None = None

    def give(self, names: list[str]) -> list[str]:
        """The codes of ``names``, each in the book before this returns."""
        codes = self.codes(names)
        if self._given is None:
            self._given = set(_book(self.folder))
        given = dict(zip(codes, names, strict=True))
        fresh = {code: name for code, name in given.items() if code not in self._given}
        if fresh:
            (self.folder / _BOOK).touch(mode=0o600)
            append_lines(self.folder / _BOOK, [json.dumps(pair) for pair in fresh.items()])
            self._given |= fresh.keys()
        return codes

    def codes(self, names: Iterable[str]) -> list[str]:
        """The codes of ``names``, which are given to nobody."""
        key = self._key()
        return [hmac.digest(key, name.encode(), "sha256").hex()[:_DIGITS] for name in names]

    def _key(self) -> bytes:
        path = self.folder / _KEY
        if not path.exists():
            handle, fresh = tempfile.mkstemp(dir=self.folder)  # Readable by this account alone.
            with os.fdopen(handle, "wb") as file:
                file.write(secrets.token_bytes(_KEY_BYTES))
                file.flush()
                os.fsync(file.fileno())
            Path(fresh).rename(path)
        key = path.read_bytes()
        if len(key) != _KEY_BYTES:
            raise UserError(
                f"{path} is no key of pseudonyms; restore it from a copy, or remove it to begin "
                "with new codes"
            )
        return key


def resolve(folder: Path, code: str) -> str:
    """The name that ``code`` stands for at the site whose state lies in ``folder``.

    Raises :class:`UserError` when it is none of that site's codes."""
    book = _book(folder)
    if code not in book:
        raise UserError(
            f"{code!r} is none of the {len(book)} codes that the site in {folder} gave out; name "
            "the folder of the site that the row is of with --state"
        )
    return book[code]


def _book(folder: Path) -> dict[str, str]:
    """The names by code."""
    path = folder / _BOOK
    book = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):  # What a crash left half written was never given out.
                code, name = json.loads(line)
                book[code] = name
    return book

"""The egress ledger: a line for every tensor and number that leaves a site."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

from fedshift import UserError
from fedshift.protocol.flower import ArrayRecord, RecordDict
from fedshift.protocol.messages import STATISTICS, Action, Purpose, value_bytes
from fedshift.protocol.storage import append_lines

Entry = dict[str, Any]

_COMPARISON = frozenset({Action.SCORE, Action.MODEL, Action.STATISTICS, Action.SHIFT_ANSWER})
"""What is asked after the last round, when the finished models are compared."""
_COMPARED = frozenset({Purpose.CASES, Purpose.MODEL, Purpose.STATISTICS})
"""What then left, in the ledgers of older runs, whose lines name no action."""


class Ledger:
    """An append-only file of JSON lines: site, round, action, record, shape, dtype, bytes, purpose.

    ``action`` is what was asked (null: nothing that could be read, round 0). ``bytes`` are those of
    the content and of the record's own name in UTF-8. ``purpose`` is the right under which it left:
    statistics leave under their own, also beside an update. The site's name is noted once, when it
    is first told.
    """

    def __init__(self, path: Path, site: str) -> None:
        self.path = path
        self.site = site
        path.parent.mkdir(parents=True, exist_ok=True)

    def record(
        self, content: RecordDict, *, action: Action | None, round: int, purpose: Purpose
    ) -> None:
        """Write down all of ``content``, on disk before it returns: first noted, then sent."""
        if purpose is Purpose.NAME and self.path.exists() and self.path.stat().st_size:
            return
        entries = [
            {
                "site": self.site,
                "round": round,
                "action": action,
                **entry,
                "purpose": right_to(record, purpose).value,
            }
            for record, entry in _entries(content)
        ]
        append_lines(self.path, self._written(entries))

    def _written(self, entries: list[Entry]) -> list[str]:
        return [_line(entry) for entry in entries]


class ChainedLedger(Ledger):
    """The one ledger of a real site, over all runs and restarts: each line also says of which
    ``run`` it is, when it was written (``at``, UTC) and, in ``before``, the hash of the line before
    it (BLAKE2b of 16 bytes; empty in the first line), so that no line can be changed or taken out
    of it without a trace (:func:`verify`)."""

    def __init__(self, path: Path, site: str, run: str) -> None:
        super().__init__(path, site)
        self.run = run

    def _written(self, entries: list[Entry]) -> list[str]:
        before = _hash(_last_line(self.path))
        at = datetime.now(UTC).isoformat(timespec="seconds")
        lines = []
        for entry in entries:
            lines.append(_line({**entry, "run": self.run, "at": at, "before": before}))
            before = _hash(lines[-1].encode())
        return lines


def _line(entry: Entry) -> str:
    return json.dumps(entry, separators=(",", ":"))


def _hash(line: bytes) -> str:
    return blake2b(line, digest_size=16).hexdigest() if line else ""


_BLOCK = 2**12


def _last_line(path: Path) -> bytes:
    """The last line of a file, without its end, also one that a crash left half written."""
    if not path.exists():
        return b""
    with path.open("rb") as file:
        at = file.seek(0, os.SEEK_END)
        tail = b""
        while at and b"\n" not in tail.rstrip(b"\n"):
            size = min(at, _BLOCK)
            at = file.seek(at - size)
            tail = file.read(size) + tail
    return tail.rstrip(b"\n").rpartition(b"\n")[2]


@dataclass(frozen=True)
class Verified:
    """What an unbroken ledger holds: its ``lines``, those of them that a crash left half written,
    and the hash of the last one. Noted elsewhere, that also shows when lines at the end are gone
    later, which the chain alone cannot tell."""

    lines: int
    torn: int
    head: str


def verify(path: Path) -> Verified:
    """Follow the chain of a real site's ledger; raise :class:`UserError` naming the first line that
    does not follow from the one before it, so that one of the two was changed."""
    lines = torn = 0
    before = b""
    for number, entry, line in _lines(path):
        lines += 1
        if entry is None:
            # Its answer never left; the line after it holds its hash all the same.
            torn += 1
        elif entry.get("before") != _hash(before):
            raise UserError(
                f"{path} line {number} does not follow from the line before it: one of the two was "
                "changed, or lines between them are gone; compare with a copy of the ledger"
            )
        before = line
    return Verified(lines, torn, _hash(before))


def entries(path: Path) -> Iterator[Entry]:
    """The entries of a ledger, none without a file, without the lines that a crash left half
    written."""
    return (entry for _, entry, _ in _lines(path) if entry is not None)


def _lines(path: Path) -> Iterator[tuple[int, Entry | None, bytes]]:
    """Each line's number, its entry (None for what a crash left half written) and its bytes."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                entry = json.loads(line)
            except ValueError:
                entry = None
            yield number, entry if isinstance(entry, dict) else None, line.rstrip(b"\n")


def right_to(record: str, purpose: Purpose) -> Purpose:
    """The right under which ``record`` leaves in an answer that serves ``purpose``."""
    return Purpose.STATISTICS if record == STATISTICS else purpose


def size_of(content: RecordDict) -> int:
    """How many bytes of arrays, numbers, texts and names ``content`` carries."""
    return sum(entry["bytes"] for _, entry in _entries(content))


def largest_of(content: RecordDict) -> int:
    """The bytes of the largest array of ``content``, with its name; 0 without any."""
    return max((entry["bytes"] for _, entry in _entries(content) if entry["shape"]), default=0)


def _entries(content: RecordDict) -> Iterator[tuple[str, Entry]]:
    """One entry a tensor, a number or list of numbers, and a text, with the record it lies in."""
    for record_name, record in content.items():
        if isinstance(record, ArrayRecord):
            for name, array in record.items():
                yield (
                    record_name,
                    {
                        "record": f"{record_name}/{name}",
                        "shape": list(array.shape),
                        "dtype": array.dtype,
                        "bytes": len(array.data) + value_bytes(name),
                    },
                )
        else:
            for name, value in record.items():
                first = value[0] if isinstance(value, list) and value else value
                yield (
                    record_name,
                    {
                        "record": f"{record_name}/{name}",
                        "shape": [len(value)] if isinstance(value, list) else [],
                        "dtype": type(first).__name__,
                        "bytes": value_bytes(value) + value_bytes(name),
                    },
                )


def left_by(round: int) -> Callable[[Any], bool]:
    """A test of ledger entries: did this leave in ``round`` or before, and not at the end? What is
    no entry is kept: no line of a ledger is lost because it cannot be read."""

    def test(entry: Any) -> bool:
        at = entry.get("round") if isinstance(entry, dict) else None
        if not isinstance(at, int):
            return True
        if "action" in entry:
            return at <= round and entry["action"] not in _COMPARISON
        return at <= round and entry.get("purpose") not in _COMPARED

    return test

"""The egress ledger: a line for every tensor and number that leaves a site."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
        lines = [
            json.dumps(
                {
                    "site": self.site,
                    "round": round,
                    "action": action,
                    **entry,
                    "purpose": right_to(record, purpose).value,
                },
                separators=(",", ":"),
            )
            for record, entry in _entries(content)
        ]
        append_lines(self.path, lines)


def right_to(record: str, purpose: Purpose) -> Purpose:
    """The right under which ``record`` leaves in an answer that serves ``purpose``."""
    return Purpose.STATISTICS if record == STATISTICS else purpose


def size_of(content: RecordDict) -> int:
    """How many bytes of arrays, numbers, texts and names ``content`` carries."""
    return sum(entry["bytes"] for _, entry in _entries(content))


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

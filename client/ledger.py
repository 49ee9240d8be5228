"""The egress ledger: a line for every tensor and number that leaves a site."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fedshift.protocol.flower import ArrayRecord, RecordDict
from fedshift.protocol.messages import EVALUATION_PURPOSES, Purpose, value_bytes


class Ledger:
    """An append-only file of JSON lines: site, round, record, shape, dtype, bytes, purpose."""

    def __init__(self, path: Path, site: str) -> None:
        self.path = path
        self.site = site
        path.parent.mkdir(parents=True, exist_ok=True)

    def record(self, content: RecordDict, *, round: int, purpose: Purpose) -> None:
        """Write down all of ``content``, on disk before it returns: first noted, then sent."""
        lines = [
            json.dumps(
                {"site": self.site, "round": round, **entry, "purpose": purpose.value},
                separators=(",", ":"),
            )
            for entry in _entries(content)
        ]
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(line + "\n" for line in lines))


def _entries(content: RecordDict) -> Iterator[dict[str, object]]:
    """One entry a tensor, a number or list of numbers, and a text."""
    for record_name, record in content.items():
        if isinstance(record, ArrayRecord):
            for name, array in record.items():
                yield {
                    "record": f"{record_name}/{name}",
                    "shape": list(array.shape),
                    "dtype": array.dtype,
                    "bytes": len(array.data),
                }
        else:
            for name, value in record.items():
                first = value[0] if isinstance(value, list) and value else value
                yield {
                    "record": f"{record_name}/{name}",
                    "shape": [len(value)] if isinstance(value, list) else [],
                    "dtype": type(first).__name__,
                    "bytes": value_bytes(value),
                }


def left_by(round: int) -> Callable[[dict[str, Any]], bool]:
    """A test of ledger entries: did this leave in ``round`` or before, and not at the end?"""

    def test(entry: dict[str, Any]) -> bool:
        return entry["round"] <= round and Purpose(entry["purpose"]) not in EVALUATION_PURPOSES

    return test

"""What a site was asked of its images, counted on its disk: the answers to models that others chose
are answers about pixels, and enough of them read a pixel off."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from fedshift.protocol.flower import ArrayRecord, RecordDict
from fedshift.protocol.storage import append_lines


class Questions:
    """A file of JSON lines, one for each question that had not been asked before: its digest and
    its kind.

    A question that comes again, as when a run goes on, has the answer that it had, and counts once.
    Other processes of the site may append to the file meanwhile.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_to = 0
        self._kinds: dict[str, str] = {}

    def ask(self, content: RecordDict, kind: str, most: int) -> bool:
        """Whether ``content`` may be answered: it is known, or one of the first ``most`` questions
        of its ``kind``, which is on disk before this returns."""
        self._read_on()
        digest = _digest(content)
        if digest in self._kinds:
            return True
        if Counter(self._kinds.values())[kind] >= most:
            return False
        append_lines(self.path, [json.dumps([digest, kind])])
        return True

    def _read_on(self) -> None:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._read_to)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read_to += len(line)
                with suppress(ValueError):  # What a crash left half written was never answered.
                    digest, kind = json.loads(line)
                    self._kinds[digest] = kind


def _digest(content: RecordDict) -> str:
    """A hash of all that ``content`` holds, in whatever order its arrays come."""
    state = blake2b(digest_size=16)
    for key in sorted(content):
        record = content[key]
        if isinstance(record, ArrayRecord):
            for name, array in sorted(record.items()):
                state.update(repr((key, name, array.dtype, array.shape)).encode())
                state.update(array.data)
        else:
            state.update(repr((key, sorted(record.items()))).encode())
    return state.hexdigest()

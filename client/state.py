"""What a site keeps between rounds, on its own disk: tensors by arm and round, and what the method
and the strategy's local rules note.

A round's state is a file of its own, so that a run killed in the middle of round ``r`` finds the
state of round ``r - 1`` untouched and repeats round ``r`` from it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from fedshift.protocol.messages import Arrays
from fedshift.protocol.storage import read_tensors, write_tensors

_NAME = re.compile(r"round_(\d+)\.safetensors$")
_NOTES = "memory::"


class SiteState:
    """The tensors that ``arm`` keeps at a site, under ``folder``."""

    def __init__(self, folder: Path, arm: str) -> None:
        self.folder = folder / arm

    def load(self, up_to_round: int) -> Arrays:
        """The newest tensors of a round at or before ``up_to_round``; empty when there are none."""
        held = self._read(up_to_round)
        return {name: array for name, array in held.items() if not name.startswith(_NOTES)}

    def notes(self, of: str, up_to_round: int) -> Arrays:
        """What ``of`` noted in the newest round at or before ``up_to_round``."""
        start = f"{_NOTES}{of}::"
        return {
            name.removeprefix(start): array
            for name, array in self._read(up_to_round).items()
            if name.startswith(start)
        }

    def _read(self, up_to_round: int) -> Arrays:
        rounds = [number for number in self._rounds() if number <= up_to_round]
        return read_tensors(self._path(max(rounds))) if rounds else {}

    def save(self, round: int, tensors: Arrays, notes: Mapping[str, Arrays]) -> None:
        """Save the state after ``round``, with the ``notes`` of each part of the training, and
        drop what no resume can need any more."""
        noted = {
            f"{_NOTES}{of}::{name}": array
            for of, arrays in notes.items()
            for name, array in arrays.items()
        }
        write_tensors(self._path(round), {**tensors, **noted})
        earlier = sorted(number for number in self._rounds() if number < round)
        for number in earlier[:-1]:
            self._path(number).unlink(missing_ok=True)

    def _path(self, round: int) -> Path:
        return self.folder / f"round_{round:04d}.safetensors"

    def _rounds(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        matches = (_NAME.match(path.name) for path in self.folder.iterdir())
        return [int(match.group(1)) for match in matches if match]

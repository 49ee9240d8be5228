"""A cell of a comparison: one run of its grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Cell:
    """One run: its value on each axis of the grid (``settings``, in the axes' order, as typed on
    the command line), its run folder, and how far it got.

    ``error`` is the sentence with which a failed cell ended.
    """

    settings: Mapping[str, str]
    folder: Path
    status: Literal["done", "failed", "left"] = "left"
    error: str = ""

    @property
    def seed(self) -> str:
        """Its value on the axis ``seed``; empty when the grid has no such axis."""
        return self.settings.get("seed", "")

    @property
    def entrant(self) -> str:
        """What it is a run of: its settings without the seed, such as
        ``strategy=fedbn method=supervised``."""
        return " ".join(f"{key}={value}" for key, value in self.settings.items() if key != "seed")

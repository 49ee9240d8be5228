"""Segmentation: every pixel belongs to the background or to one structure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Segmentation:
    """The task of labelling each pixel with one of ``structures`` or the background.

    Labels are (S, H, W) uint8 class indices, 0 for the background and ``k + 1`` for
    ``structures[k]``; a prediction is class probabilities (S, C, H, W). ``tolerance_mm`` is the
    tolerance of the normalised surface Dice. ``size`` is the network grid's rows and columns.
    ``unlabelled`` are the names of the training sites that have no label, sorted.
    """

    structures: tuple[str, ...]
    tolerance_mm: float = 2.0
    in_channels: int = 1
    size: tuple[int, int] = (64, 64)
    unlabelled: tuple[str, ...] = ()

    @property
    def classes(self) -> int:
        """The number of classes, background included."""
        return len(self.structures) + 1

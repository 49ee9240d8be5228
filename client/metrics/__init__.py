"""How well a prediction agrees with its reference, one case at a time."""

from __future__ import annotations

from fedshift.client.metrics.segmentation import dice, score_case
from fedshift.client.metrics.surface import border, surface_distances

__all__ = ["border", "dice", "score_case", "surface_distances"]

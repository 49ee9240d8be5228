"""One measure of every model at every site, as numbers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedshift.protocol.measures import Measure
from fedshift.server.report.words import EACH_OWN, Model


@dataclass(frozen=True)
class Matrix:
    """One measure of every model at every site.

    ``part`` is ``None`` for the mean over the parts. ``mean``, ``low`` and ``high`` (the 95 %
    interval) are (models, sites) float64, nan where nothing was measured; ``scores`` and ``failed``
    count the cases and parts behind each mean. The mean over several parts has no interval.
    """

    measure: Measure
    part: str | None
    models: tuple[Model, ...]
    sites: tuple[str, ...]
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    scores: np.ndarray
    failed: np.ndarray

    @cached_property
    def home(self) -> np.ndarray:
        """Which cells are a model at the site that trained it, (models, sites) bool."""
        own = [
            [model == EACH_OWN or model[1] == site for site in self.sites] for model in self.models
        ]
        return np.array(own) & ~np.isnan(self.mean)

    @cached_property
    def best(self) -> np.ndarray:
        """Which cells are the best of their column, (models, sites) bool. Pooled, an upper bound,
        does not compete; a measure without a direction has no best."""
        if not self.measure.better:
            return np.zeros(self.mean.shape, bool)
        score = self.measure.sign * self.mean
        pooled = np.array([model == "pooled" for model, _ in self.models])
        score = np.where(np.isnan(score) | pooled[:, None], -np.inf, score)
        return (score == score.max(axis=0)) & np.isfinite(score)

"""HarmoFL's amplitude normalisation: Jiang et al., AAAI 2022 (see
:mod:`fedshift.strategies.harmofl`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fedshift.client.contract.method import OF_RULES, FitReport, Scene, StatisticsBank
from fedshift.client.contract.step import Step
from fedshift.client.rules.base import Images, LocalRule, Train, published_beside, spectra
from fedshift.protocol.needs import CHANGE

AMPLITUDE = f"{OF_RULES}amplitude"
"""A site's mean amplitude spectrum (H, W) in the bank."""
_BATCH = 32


class Harmonised(LocalRule):
    """Train on images that have the sites' mean amplitude spectrum, and publish the site's own.

    It is measured once, over all slices of the training split. While no site has published one,
    the site's own is used.
    """

    needs = frozenset({CHANGE})

    def around(self, train: Train) -> FitReport:
        """The method's training, on harmonised images."""
        visit = self.visit
        cases = visit.site.splits["train"]
        if AMPLITUDE not in visit.memory:
            visit.memory[AMPLITUDE] = spectra.moments(cases, visit.device)[0]
        own = visit.memory[AMPLITUDE]
        mean = mean_amplitude(visit.bank)
        self.step = WithAmplitude(torch.from_numpy(own if mean is None else mean).to(visit.device))
        return published_beside(train(), {AMPLITUDE: own}, sum(len(c.image) for c in cases))

    @classmethod
    def at_prediction(cls, scene: Scene, **settings: Any) -> Callable[[Images], Images] | None:
        """Images with the sites' mean amplitude spectrum, if any published one."""
        mean = mean_amplitude(scene.bank)
        if mean is None:
            return None
        wanted = torch.from_numpy(mean).to(scene.device)

        def harmonised(images: Images) -> np.ndarray:
            changed = np.empty(np.shape(images), np.float32)
            for start in range(0, len(images), _BATCH):
                part = np.array(images[start : start + _BATCH], dtype=np.float32)
                found = spectra.with_amplitude(torch.from_numpy(part).to(scene.device), wanted)
                changed[start : start + len(part)] = found.cpu().numpy()
            return changed

        return harmonised


@dataclass(frozen=True)
class WithAmplitude(Step):
    """Train on images with the amplitude spectrum ``wanted`` (H, W) and their own phase."""

    wanted: torch.Tensor

    def change(self, images: torch.Tensor) -> torch.Tensor:
        return spectra.with_amplitude(images, self.wanted)


def mean_amplitude(bank: StatisticsBank) -> np.ndarray | None:
    """The mean over the sites of the spectra (H, W) they published, if any did."""
    found = [bank[site][AMPLITUDE] for site in sorted(bank) if AMPLITUDE in bank[site]]
    return np.stack(found).mean(axis=0, dtype=np.float64).astype(np.float32) if found else None

"""HarmoFL's amplitude normalisation: Jiang et al., AAAI 2022 (see
:mod:`fedshift.strategies.harmofl`)."""

from __future__ import annotations

import torch

from fedshift.client import spectra
from fedshift.client.contract.method import FitReport
from fedshift.client.rules.base import LocalRule, Train, published_beside


class Harmonised(LocalRule):
    """Train on images that have the sites' mean amplitude spectrum, and publish the site's own.

    It is measured once, over all slices of the training split. While no site has published one,
    the site's own is used.
    """

    def around(self, train: Train) -> FitReport:
        """The segmentation network's training, on harmonised images."""
        visit = self.visit
        cases = visit.site.splits["train"]
        if spectra.HARMONISED not in visit.memory:
            visit.memory[spectra.HARMONISED] = spectra.moments(cases, visit.device)[0]
        own = visit.memory[spectra.HARMONISED]
        mean = spectra.mean_amplitude(visit.bank)
        wanted = torch.from_numpy(own if mean is None else mean).to(visit.device)
        report = train(appearance=lambda images: spectra.with_amplitude(images, wanted))
        return published_beside(report, {spectra.HARMONISED: own}, sum(len(c.image) for c in cases))

"""ELCFS's continuous interpolation in frequency space: Liu Q. et al., CVPR 2021 (see
:mod:`fedshift.strategies.feddg`)."""

from __future__ import annotations

import torch

from fedshift import derive_seed
from fedshift.client import spectra
from fedshift.client.methods.base import OF_RULES, FitReport
from fedshift.client.rules.base import LocalRule, Train, Visit, published_beside

MEAN = f"{OF_RULES}low_amplitude_mean"
DEVIATION = f"{OF_RULES}low_amplitude_deviation"
"""A site's low-frequency amplitudes in the bank: a window of its mean spectrum, and of the standard
deviation over its slices."""


class AmplitudeExchange(LocalRule):
    """Give training slices low-frequency amplitudes of other sites, and publish the site's own.

    They are measured once, over all slices of the training split. While no other site has published
    any, images stay as they are.
    """

    def __init__(self, visit: Visit, share: float, reach: float) -> None:
        super().__init__(visit)
        self.share = share
        self.window = spectra.Window(visit.site.size, reach)
        others = [visit.bank[name] for name in sorted(visit.bank) if name != visit.site.name]
        self._others = [
            tuple(torch.from_numpy(found[name]).to(visit.device) for name in (MEAN, DEVIATION))
            for found in others
            if MEAN in found
        ]
        instruction = visit.instruction
        seed = derive_seed(instruction.seed, visit.site.name, instruction.round, "amplitudes")
        self._generator = torch.Generator().manual_seed(seed)

    def around(self, train: Train) -> FitReport:
        """The segmentation network's training, on images of which some are moved."""
        visit = self.visit
        cases = visit.site.splits["train"]
        if MEAN not in visit.memory:
            for name, spectrum in zip(
                (MEAN, DEVIATION), spectra.moments(cases, visit.device), strict=True
            ):
                visit.memory[name] = self.window.of(torch.from_numpy(spectrum)).numpy()
        own = {name: visit.memory[name] for name in (MEAN, DEVIATION)}
        report = train(appearance=self.moved) if self._others else train()
        return published_beside(report, own, sum(len(case.image) for case in cases))

    def moved(self, images: torch.Tensor) -> torch.Tensor:
        """``images`` (B, 1, H, W), a random ``share`` of them with other amplitudes."""
        count, generator = len(images), self._generator
        chance, towards = torch.rand(2, count, generator=generator)
        sites = torch.randint(len(self._others), (count,), generator=generator).tolist()
        noise = self.window.noise(count, generator).to(images.device)
        mean, deviation = (
            torch.stack([self._others[site][which] for site in sites]) for which in (0, 1)
        )
        wanted = (mean + deviation * noise).clamp(min=0)
        changed = self.window.interpolate(images, wanted, towards.to(images.device))
        chosen = (chance < self.share).view(-1, 1, 1, 1).to(images.device)
        return torch.where(chosen, changed, images)

"""ELCFS, episodes in a continuous frequency space: Liu Q. et al., CVPR 2021 (see
:mod:`fedshift.strategies.feddg` and, on the episodes,
:mod:`fedshift.client.rules.base.episodes`)."""

from __future__ import annotations

import torch

from fedshift import derive_seed
from fedshift.client.contract.method import OF_RULES, FitReport
from fedshift.client.rules.base import LocalRule, Train, Visit, published_beside, spectra
from fedshift.client.rules.base.episodes import Episode
from fedshift.protocol.needs import CHANGE, DESCEND

MEAN = f"{OF_RULES}low_amplitude_mean"
DEVIATION = f"{OF_RULES}low_amplitude_deviation"
"""A site's low-frequency amplitudes in the bank: a window of its mean spectrum, and of the standard
deviation over its slices."""


class AmplitudeExchange(LocalRule):
    """Try every step on images with low-frequency amplitudes of other sites, and publish the site's
    own.

    They are measured once, over all slices of the training split. While no other site has published
    any, there are no episodes.
    """

    needs = frozenset({CHANGE, DESCEND})

    def __init__(
        self, visit: Visit, reach: float, inner_lr: float, boundary: float, temperature: float
    ) -> None:
        super().__init__(visit)
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
        if self._others:
            self.step = Episode(self.moved, inner_lr, boundary, temperature, visit.model.task)

    def around(self, train: Train) -> FitReport:
        """The method's training, in episodes."""
        visit = self.visit
        cases = visit.site.splits["train"]
        if MEAN not in visit.memory:
            for name, spectrum in zip(
                (MEAN, DEVIATION), spectra.moments(cases, visit.device), strict=True
            ):
                visit.memory[name] = self.window.of(torch.from_numpy(spectrum)).numpy()
        own = {name: visit.memory[name] for name in (MEAN, DEVIATION)}
        return published_beside(train(), own, sum(len(case.image) for case in cases))

    def moved(self, images: torch.Tensor) -> torch.Tensor:
        """``images`` (B, C, H, W), each moved towards another site by a share of its own."""
        count, generator = len(images), self._generator
        towards = torch.rand(count, generator=generator).to(images.device)
        sites = torch.randint(len(self._others), (count,), generator=generator).tolist()
        noise = self.window.noise(count, generator).to(images.device)
        mean, deviation = (
            torch.stack([self._others[site][which] for site in sites]) for which in (0, 1)
        )
        wanted = (mean + deviation * noise).clamp(min=0)
        return self.window.interpolate(images, wanted, towards)

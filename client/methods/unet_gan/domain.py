"""A domain's images, as the translation is trained on them."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fedshift import derive_seed
from fedshift.client.augmentation import Augmentation, warp_mask
from fedshift.client.contract.method import Budget
from fedshift.client.slices import Slices
from fedshift.sites.types import SiteData


class DomainSlices:
    """The slices of a site's training split, labelled or not, changed by the geometric part of
    ``augmentation``: other changes would alter what the domain looks like."""

    def __init__(self, site: SiteData, augmentation: Augmentation) -> None:
        self._slices = Slices(site.splits["train"])
        self._augmentation = Augmentation(affine=augmentation.affine, flip=augmentation.flip)

    def __len__(self) -> int:
        return len(self._slices)

    def batches(
        self, size: int, steps: int, target: str, budget: Budget
    ) -> Iterator[tuple[torch.Tensor, torch.Generator]]:
        """Yield ``steps`` random batches (B, C, H, W) in [0, 1], without repetition inside one, and
        the generator of what else is drawn for it. B is ``size``, or the number of slices."""
        generator = torch.Generator().manual_seed(derive_seed(budget.seed, "translation", target))
        for _ in range(steps):
            chosen = torch.randperm(len(self), generator=generator)[:size].tolist()
            images = self._slices.stack(chosen).to(budget.device)
            labels = torch.zeros(images[:, 0].shape, dtype=torch.uint8, device=budget.device)
            images, _ = self._augmentation(images, labels, generator, warp_mask)
            yield images.clamp(0, 1), generator

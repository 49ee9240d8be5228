"""Supervised training of the LV-Unet: the baseline of every comparison.

Yan et al., "The Domain Shift Problem of Medical Image Segmentation and Vendor-Adaptation by
Unet-GAN", MICCAI 2019: step 1 of the workflow (section 2) and, with ``augmentation.noise`` above
zero, the "polluted" U-Net of section 3.2. The paper trains at one site with Adam, learning rate
1e-4 and batches of 10 for 35 epochs and names no loss; here it is soft Dice + cross-entropy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedshift.client.contract.method import (
    AVERAGED,
    Budget,
    FitReport,
    Networks,
    Scene,
    Sharing,
    StatisticsBank,
)
from fedshift.client.contract.task import DenseTask, Task
from fedshift.client.methods.base import Segmenting
from fedshift.client.training import predict_slices
from fedshift.sites.types import SiteData


@dataclass(frozen=True)
class Supervised(Segmenting):
    """Every site with labels trains one LV-Unet, which the strategy averages."""

    tasks = frozenset({DenseTask})

    def networks(self, task: Task) -> Networks:
        return {"segmenter": self.segmenter(task)}

    def sharing(self, task: Task) -> dict[str, Sharing]:
        return {"segmenter": AVERAGED}

    def fit(
        self, site: SiteData, nets: Networks, bank: StatisticsBank, budget: Budget
    ) -> FitReport:
        return self.train_segmenter(site, nets, self.augmentation, budget)

    def predict(
        self, nets: Networks, images: Sequence[np.ndarray] | np.ndarray, scene: Scene
    ) -> np.ndarray:
        return predict_slices(nets["segmenter"], images, scene)

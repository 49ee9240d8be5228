"""Supervised segmentation with the LV-Unet: the baseline of every comparison.

Yan et al., "The Domain Shift Problem of Medical Image Segmentation and Vendor-Adaptation by
Unet-GAN", MICCAI 2019: step 1 of the workflow (section 2) and, with ``augmentation.noise`` above
zero, the "polluted" U-Net of section 3.2. The paper trains at one site with Adam, learning rate
1e-4 and batches of 10 for 35 epochs and names no loss; here it is soft Dice + cross-entropy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from fedshift.client.augmentation import Augmentation
from fedshift.client.methods.base import (
    AVERAGED,
    Budget,
    FitReport,
    Method,
    Networks,
    Scene,
    Sharing,
    StatisticsBank,
)
from fedshift.client.networks.lv_unet import LVUNet, Norm
from fedshift.client.tasks import Segmentation
from fedshift.client.training import LabelledSlices, predict_probabilities, train_segmentation
from fedshift.protocol.settings import setting
from fedshift.sites.types import SiteData


@dataclass(frozen=True)
class Supervised(Method):
    """Every site with labels trains one LV-Unet, which the strategy averages.

    ``width``, ``depth``, ``blocks`` and ``norm`` shape the network
    (:class:`~fedshift.client.networks.lv_unet.LVUNet`); ``batch`` slices a step, ``lr`` is Adam's.
    """

    tasks = frozenset({Segmentation})

    width: int = setting(8, at_least=1)
    depth: int = setting(4, at_least=1, at_most=8)
    blocks: int = setting(1, at_least=1)
    norm: Norm = "instance"
    batch: int = setting(12, at_least=1)
    lr: float = setting(4e-3, at_least=0)
    augmentation: Augmentation = field(default_factory=Augmentation)

    def networks(self, task: Segmentation) -> Networks:
        net = LVUNet(
            task.in_channels,
            task.classes,
            width=self.width,
            depth=self.depth,
            blocks=self.blocks,
            norm=self.norm,
        )
        return {"segmenter": net}

    def sharing(self, task: Segmentation) -> dict[str, Sharing]:
        return {"segmenter": AVERAGED}

    def fit(
        self, site: SiteData, nets: Networks, bank: StatisticsBank, budget: Budget
    ) -> FitReport:
        """Train on the labelled slices of the training split; without any, train nothing."""
        slices = LabelledSlices(site.splits["train"])
        if not len(slices):
            return FitReport()
        metrics = train_segmentation(
            nets,
            "segmenter",
            slices,
            batch=self.batch,
            learning_rate=self.lr,
            augmentation=self.augmentation,
            budget=budget,
        )
        return FitReport({"segmenter": len(slices)}, metrics)

    def predict(
        self, nets: Networks, images: Sequence[np.ndarray] | np.ndarray, scene: Scene
    ) -> np.ndarray:
        return predict_probabilities(nets["segmenter"], images, scene.device)

    def features(self, nets: Networks, images: torch.Tensor) -> torch.Tensor:
        """The mean over pixels of the encoder's last residual block, (B, width * 2**(depth-1))."""
        net = nets["segmenter"]
        assert isinstance(net, LVUNet)
        net.eval()
        with torch.inference_mode():
            return net.encode(images.to(net.head.weight.device))[-1].mean(dim=(2, 3))

"""What the methods that train one LV-Unet for segmentation have in common."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from fedshift.client.augmentation import Augmentation
from fedshift.client.contract.method import Budget, FitReport, Method, Networks
from fedshift.client.contract.task import Task
from fedshift.client.networks.lv_unet import LVUNet, Norm
from fedshift.client.slices import LabelledSlices
from fedshift.client.training import Augment, train
from fedshift.protocol.settings import setting
from fedshift.sites.types import SiteData


@dataclass(frozen=True)
class Segmenting(Method):
    """A method with an LV-Unet as its sub-network ``segmenter``.

    ``width``, ``depth``, ``blocks`` and ``norm`` shape the network
    (:class:`~fedshift.client.networks.lv_unet.LVUNet`); ``batch`` slices a step, ``lr`` is Adam's.
    """

    stepped = ("segmenter",)

    width: int = setting(8, at_least=1)
    depth: int = setting(4, at_least=1, at_most=8)
    blocks: int = setting(1, at_least=1)
    norm: Norm = "instance"
    batch: int = setting(12, at_least=1)
    lr: float = setting(4e-3, at_least=0)
    augmentation: Augmentation = field(default_factory=Augmentation)

    def drawn(self, steps: int) -> int:
        """A batch a step."""
        return steps * self.batch

    def segmenter(self, task: Task) -> LVUNet:
        """The segmentation network, untrained."""
        return LVUNet(
            task.in_channels,
            task.outputs,
            width=self.width,
            depth=self.depth,
            blocks=self.blocks,
            norm=self.norm,
        )

    def train_segmenter(
        self, site: SiteData, nets: Networks, augmentation: Augment, budget: Budget
    ) -> FitReport:
        """Train it on the labelled slices of the training split; without any, train nothing."""
        slices = LabelledSlices(site.splits["train"], budget.task)
        if not len(slices):
            return FitReport()
        metrics = train(
            nets,
            "segmenter",
            slices,
            batch=self.batch,
            learning_rate=self.lr,
            augmentation=augmentation,
            budget=budget,
        )
        return FitReport({"segmenter": len(slices)}, metrics)

    def features(self, nets: Networks, images: torch.Tensor) -> torch.Tensor:
        """The mean over pixels of the encoder's last residual block, (B, width * 2**(depth-1))."""
        net = nets["segmenter"]
        assert isinstance(net, LVUNet)
        net.eval()
        with torch.inference_mode():
            return net.encode(images.to(net.head.weight.device))[-1].mean(dim=(2, 3))

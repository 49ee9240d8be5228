"""MOON's model-contrastive term: Li Q. et al., CVPR 2021, Eq. 3 (see
:mod:`fedshift.strategies.moon`).
"""

from __future__ import annotations

import copy

import torch
from torch.nn import functional as F

from fedshift.client.contract.method import FitReport
from fedshift.client.methods.base import representation
from fedshift.client.networks.lv_unet import LVUNet
from fedshift.client.rules.base import LocalRule, Train, Visit
from fedshift.protocol.messages import Arrays


class Contrast(LocalRule):
    """Draw the representation of an image towards the received model's and away from that of the
    model the site ended with last time, which it remembers."""

    def __init__(self, visit: Visit, mu: float, temperature: float) -> None:
        super().__init__(visit)
        self.mu, self.temperature = mu, temperature

    def around(self, train: Train) -> FitReport:
        """The method's training, with the term from the second time on."""
        if not self.visit.memory:
            report = train()
        else:
            net = self.visit.model.nets["segmenter"]
            assert isinstance(net, LVUNet)
            received, previous = _frozen(net), _frozen(net, self.visit.memory)
            seen: list[torch.Tensor] = []
            # The features of the batch, from the very pass that the loss is computed in.
            handle = net.encoder[-1].register_forward_hook(
                lambda module, inputs, output: seen.append(output)
            )

            def penalty(images: torch.Tensor) -> torch.Tensor:
                with torch.no_grad():
                    towards, away = (model.encode(images)[-1] for model in (received, previous))
                return self.mu * contrastive_loss(seen.pop(), towards, away, self.temperature)

            try:
                report = train(batch_penalty=penalty)
            finally:
                handle.remove()
        if "segmenter" in report.trained:
            self.visit.memory.update(self._segmenter())
        return report

    def _segmenter(self) -> Arrays:
        start = "segmenter/"
        names = [name for name in self.visit.model.tensors() if name.startswith(start)]
        arrays = self.visit.model.read(names)
        return {name.removeprefix(start): array for name, array in arrays.items()}


def contrastive_loss(
    current: torch.Tensor, received: torch.Tensor, previous: torch.Tensor, temperature: float
) -> torch.Tensor:
    """-log( e^{s_g} / (e^{s_g} + e^{s_p}) ), the mean over the batch, with the cosine similarities
    over ``temperature`` of z to z_glob and to z_prev; of feature maps (B, D, h, w)."""
    z, z_glob, z_prev = (representation(block.float()) for block in (current, received, previous))
    similarities = [F.cosine_similarity(z, other, dim=1) for other in (z_glob, z_prev)]
    logits = torch.stack(similarities, dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(z), dtype=torch.long, device=z.device))


def _frozen(net: LVUNet, weights: Arrays | None = None) -> LVUNet:
    """A copy of ``net``, with other ``weights`` if given, that is only looked through."""
    frozen = copy.deepcopy(net).eval().requires_grad_(False)
    if weights:
        frozen.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    return frozen

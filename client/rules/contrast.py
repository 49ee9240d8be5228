"""MOON's model-contrastive term: Li Q. et al., CVPR 2021, Eq. 3 (see
:mod:`fedshift.strategies.moon`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from fedshift.client.contract.method import FitReport
from fedshift.client.contract.step import Encoder, Seen, Step
from fedshift.client.model import network_of
from fedshift.client.networks.frozen import frozen
from fedshift.client.rules.base import LocalRule, Train, Visit
from fedshift.protocol.messages import Arrays


class Contrast(LocalRule):
    """Draw the representation of an image towards the received model's and away from that of the
    model the site ended with last time, which it remembers."""

    def __init__(self, visit: Visit, mu: float, temperature: float) -> None:
        super().__init__(visit)
        self._watched: dict[str, _Watched] = {}
        for name in visit.model.method.stepped:
            start = f"{name}/"
            ended = {
                key.removeprefix(start): torch.from_numpy(array)
                for key, array in visit.memory.items()
                if key.startswith(start)
            }
            if ended:
                net = visit.model.nets[name]
                previous = frozen(net)
                previous.load_state_dict(ended)
                self._watched[name] = _Watched(net, frozen(net), previous)
        if self._watched:
            self.step = Towards(self._watched, mu, temperature)

    def around(self, train: Train) -> FitReport:
        """The method's training, with the term from the second time on."""
        with ExitStack() as watching:
            for watched in self._watched.values():
                watching.enter_context(watched.watch())
            report = train()
        self.visit.memory.update(self._ended(report))
        return report

    def _ended(self, report: FitReport) -> Arrays:
        """The trained ones of the networks that have such a term."""
        stepped = report.trained.keys() & set(self.visit.model.method.stepped)
        names = [name for name in self.visit.model.tensors() if network_of(name) in stepped]
        return self.visit.model.read(names)


class _Watched:
    """A network in training, and copies of the one received and the one a site last ended with."""

    def __init__(self, net: nn.Module, received: nn.Module, previous: nn.Module) -> None:
        assert isinstance(net, Encoder)
        assert isinstance(received, Encoder)
        assert isinstance(previous, Encoder)
        self._net, self._received, self._previous = net, received, previous
        self._features: torch.Tensor | None = None

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Note the features of every pass: the term is of that in which the loss is computed."""
        handle = self._net.bottleneck.register_forward_hook(self._note)
        try:
            yield
        finally:
            handle.remove()

    def _note(self, module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        self._features = output

    def features(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of ``images``, which it has just seen, and what the two copies make of them."""
        current, self._features = self._features, None
        assert current is not None
        with torch.no_grad():
            return current, self._received.encode(images)[-1], self._previous.encode(images)[-1]


@dataclass(frozen=True)
class Towards(Step):
    """``mu`` times the contrastive loss of the networks that are watched."""

    watched: Mapping[str, _Watched]
    mu: float
    temperature: float

    def penalty(self, nets: Mapping[str, nn.Module], seen: Seen) -> torch.Tensor | None:
        terms = [
            self.mu * contrastive_loss(*self.watched[name].features(images), self.temperature)
            for name, images in seen.items()
            if name in self.watched
        ]
        return torch.stack(terms).sum() if terms else None


def contrastive_loss(
    current: torch.Tensor, received: torch.Tensor, previous: torch.Tensor, temperature: float
) -> torch.Tensor:
    """-log( e^{s_g} / (e^{s_g} + e^{s_p}) ), the mean over the batch, with the cosine similarities
    over ``temperature`` of z to z_glob and to z_prev; of feature maps (B, D, h, w)."""
    z, z_glob, z_prev = (block.float().mean(dim=(2, 3)) for block in (current, received, previous))
    similarities = [F.cosine_similarity(z, other, dim=1) for other in (z_glob, z_prev)]
    logits = torch.stack(similarities, dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(z), dtype=torch.long, device=z.device))

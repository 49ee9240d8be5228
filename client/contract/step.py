"""What a strategy changes in the steps of local training, whatever the method.

A method's training loops follow the step of their budget. In the loops of the sub-networks that it
calls :attr:`~fedshift.client.contract.method.Method.stepped` the step changes the images of a batch
and says how the gradients come about; its penalty is added in every loop. A training that asks for
less than the strategy's rules would change is an error: it would be plain averaging under the
strategy's name.

What a strategy does of this only some methods, networks and tasks let it do. It says what it needs
in words (:data:`fedshift.protocol.needs.NEEDS`), a method's card says what is offered
(:meth:`fedshift.client.model.Model.offers`), and the coordinator compares the two.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from fedshift import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn

Losses = Mapping[str, "torch.Tensor"]
"""Scalars by name, whose sum is descended."""
Seen = Mapping[str, "torch.Tensor"]
"""Images (B, C, H, W) by the name of the sub-network that has just seen them."""


@dataclass(frozen=True)
class Batch:
    """What one step is taken on: ``images`` (B, C, H, W), their ``labels`` (B, ...) of the task's
    form and, where not all tell of everything, of which parts each is ``told``, (B, 1 + parts)
    bool (:meth:`fedshift.client.contract.task.Task.loss`)."""

    images: torch.Tensor
    labels: torch.Tensor
    told: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def rows(self, rows: slice) -> Batch:
        """Those of its images and labels."""
        told = None if self.told is None else self.told[rows]
        return Batch(self.images[rows], self.labels[rows], told)


class Gradients(Protocol):
    """Leaves the gradients of a loop's objective in the parameters that the loop moves."""

    def __call__(self, batch: Batch) -> Losses:
        """Those of the losses of ``batch`` and the penalty, in place of what was there; return what
        was added up."""
        ...

    def add(self, objective: Callable[[], torch.Tensor]) -> None:
        """Add those of a scalar, which is computed under the loop's mixed precision."""
        ...

    @property
    def scale(self) -> torch.Tensor:
        """By what all of them are multiplied: the loss scale of mixed precision, else 1."""
        ...


class Step:
    """A step as the method takes it; subclasses change it."""

    def change(self, images: torch.Tensor) -> torch.Tensor:
        """What is trained on in place of ``images`` (B, C, H, W), before the method's own
        augmentation: as many images, or a whole number of times as many, which then have the same
        labels once more, in the same order."""
        return images

    def penalty(self, nets: Mapping[str, nn.Module], seen: Seen) -> torch.Tensor | None:
        """A scalar to be added to what is descended, or None, given all of the method's networks.

        ``seen`` is what ``stepped`` networks were shown for this very gradient; it is empty in the
        loops of others. Computed under the loop's mixed precision."""
        return None

    def descend(self, net: nn.Module, batch: Batch, gradients: Gradients) -> Losses:
        """Leave in the parameters of ``net`` the gradients that its optimiser is to follow, and
        return the losses at its weights. ``batch`` holds the changed and augmented images."""
        return gradients(batch)


def hooks(step: Step) -> frozenset[str]:
    """Which of ``change``, ``penalty`` and ``descend`` the step has of its own."""
    names = ("change", "penalty", "descend")
    return frozenset(n for n in names if getattr(type(step), n) is not getattr(Step, n))


class Composed(Step):
    """One step of several: their changes one after the other, their penalties added in that order,
    and the descent of the one that has its own. It notes what a training asks of it."""

    def __init__(self, steps: Sequence[Step]) -> None:
        """Raises :class:`fedshift.UserError` when two have a descent of their own."""
        self._steps = steps
        if len(owners := self._with("descend")) > 1:
            first, second = (type(step).__name__ for step in owners[:2])
            raise UserError(
                f"the strategy has both {first} and {second} say how a step's gradients come "
                "about; only one rule can"
            )
        self._owner = owners[0] if owners else Step()
        self._changed = self._penalised = False
        self._seen: set[str] = set()
        self._descended: set[nn.Module] = set()

    def _with(self, hook: str) -> list[Step]:
        """Those of the steps that have a ``hook`` of their own."""
        return [step for step in self._steps if hook in hooks(step)]

    def change(self, images: torch.Tensor) -> torch.Tensor:
        self._changed = True
        for step in self._steps:
            images = step.change(images)
        return images

    def penalty(self, nets: Mapping[str, nn.Module], seen: Seen) -> torch.Tensor | None:
        self._penalised = True
        self._seen.update(seen)
        terms = [term for step in self._steps if (term := step.penalty(nets, seen)) is not None]
        return sum(terms[1:], terms[0]) if terms else None

    def descend(self, net: nn.Module, batch: Batch, gradients: Gradients) -> Losses:
        self._descended.add(net)
        return self._owner.descend(net, batch, gradients)

    def unasked(self, moved: Mapping[str, nn.Module], stepped: Collection[str]) -> str:
        """What of it a training never asked for that ``moved`` these of a method's networks, of
        which those called ``stepped`` are to follow all of it; empty where nothing is lacking. Of
        a method that calls none so, all are to follow its change and its descent."""
        if moved and self._with("penalty") and not self._penalised:
            return "its penalty"
        descended = {tensor for net in self._descended for tensor in net.parameters()}
        for name in sorted(moved.keys() & (stepped or moved)):
            if self._with("change") and not self._changed:
                return f"the images that {name} is to be trained on"
            if stepped and self._with("penalty") and name not in self._seen:
                return f"its penalty on what {name} has seen"
            if self._with("descend") and descended.isdisjoint(moved[name].parameters()):
                return f"the gradients that {name} is to follow"
        return ""


@runtime_checkable
class Encoder(Protocol):
    """A network that shows what it makes of images on the way to its prediction."""

    @property
    def bottleneck(self) -> nn.Module:
        """The module whose output is the last of :meth:`encode`, called once a forward pass."""
        ...

    def encode(self, images: torch.Tensor) -> Sequence[torch.Tensor]:
        """Feature maps (B, D, h, w) of images (B, C, H, W), the deepest last."""
        ...


@runtime_checkable
class Decoder(Protocol):
    """A network that shows its way back to full resolution; it predicts
    ``head(decode(images)[-1])``."""

    @property
    def head(self) -> nn.Module:
        """Makes the prediction (B, outputs, H, W) of the last feature map."""
        ...

    def decode(self, images: torch.Tensor) -> Sequence[torch.Tensor]:
        """Feature maps (B, D, h, w) of images (B, C, H, W), the finest, (B, D, H, W), last."""
        ...

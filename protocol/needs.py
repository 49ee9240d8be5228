"""What a strategy may need of a method, its networks and the task, and what these then offer.

A method's card lists what is offered; another method or task may offer, and another strategy ask
for, what stands in no list here."""

from __future__ import annotations

from collections.abc import Collection

from fedshift import UserError

CHANGE = "change"
DESCEND = "descend"
ENCODER = "encoder"
DECODER = "decoder"
PIXEL_CLASSES = "pixel classes"

NEEDS = {
    CHANGE: "training steps whose images it may change",
    DESCEND: "training steps whose gradients it may take elsewhere",
    ENCODER: "a network that shows its encoder's features",
    DECODER: "a network that shows its decoder's features",
    PIXEL_CLASSES: "labels that give every pixel a class",
}
"""Each in words that end a sentence's "it needs"."""


def check_offered(
    strategy: str, needs: frozenset[str], method: str, task: str, offers: Collection[str]
) -> None:
    """Raise :class:`fedshift.UserError` unless ``method`` with ``task`` offers what the strategy
    ``needs``."""
    if lacking := sorted(needs.difference(offers)):
        raise UserError(
            f"strategy={strategy} needs {NEEDS.get(lacking[0], lacking[0])}, which "
            f"method={method} with task={task} does not offer; choose another strategy or another "
            "method"
        )

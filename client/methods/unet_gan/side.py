"""The networks of a target, as the source and the target see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

SOURCE = "source"
"""The domain of every site with labels; each target site is a domain of its own name."""


@dataclass(frozen=True)
class Side:
    """The names of one target's four networks, as one of its two domains sees them."""

    target: str
    there: str
    """Translates this domain's images into the other's."""
    back: str
    judge_here: str
    """Tells this domain's images from translated ones."""
    judge_there: str

    @classmethod
    def of(cls, target: str, domain: str) -> Side:
        """The side of ``domain``, which is ``source`` or the target's own name."""
        there, back = f"from_source.{target}", f"to_source.{target}"
        here, other = f"judge_source.{target}", f"judge_target.{target}"
        if domain != SOURCE:
            there, back, here, other = back, there, other, here
        return cls(target, there, back, here, other)

    @property
    def translators(self) -> tuple[str, str]:
        """The two generators, G_T and G_S at the source."""
        return self.there, self.back

    @property
    def judges(self) -> tuple[str, str]:
        """The two discriminators, D_S and D_T at the source."""
        return self.judge_here, self.judge_there


def targets_of(nets: Mapping[str, nn.Module]) -> list[str]:
    """The sites without labels, whose translators are among ``nets``."""
    prefix = "to_source."
    return [name.removeprefix(prefix) for name in nets if name.startswith(prefix)]

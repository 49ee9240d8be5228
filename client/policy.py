"""What a site allows: which methods run on its images and what may leave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedshift import UserError
from fedshift.protocol.messages import RELEASABLE, Purpose
from fedshift.protocol.settings import from_mapping, setting, suggest


class Refused(Exception):
    """The site's policy does not allow what was asked; the message says what and which key."""


@dataclass(frozen=True)
class Policy:
    """A site's rules. The defaults allow everything a simulation needs and never an image.

    ``methods``: names of the methods that may train here, or ``("*",)`` for all.
    ``release``: which purposes may leave. ``max_message_mb``: the largest answer, in 10^6 bytes.
    ``min_count``: fewest images that a published statistic may summarise.
    """

    methods: tuple[str, ...] = ("*",)
    release: tuple[str, ...] = RELEASABLE
    max_message_mb: float = setting(1000.0, at_least=0)
    min_count: int = setting(4, at_least=1)

    def __post_init__(self) -> None:
        for purpose in self.release:
            if purpose not in RELEASABLE:
                raise UserError(f"policy.release holds {purpose!r}{suggest(purpose, RELEASABLE)}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Policy:
        """Build from the config node ``policy``; raises :class:`UserError` naming the key."""
        return from_mapping(cls, {k: v for k, v in config.items() if k != "name"}, "policy")

    def check_method(self, name: str) -> None:
        """Raise :class:`Refused` when the method called ``name`` may not run here."""
        if "*" not in self.methods and name not in self.methods:
            raise Refused(f"the site's policy does not allow method '{name}' (policy.methods)")

    def check_release(self, purpose: Purpose, size: int) -> None:
        """Raise :class:`Refused` when ``size`` bytes may not leave for ``purpose``."""
        if purpose.value not in self.release:
            raise Refused(f"the site's policy does not release a '{purpose}' (policy.release)")
        if size > self.max_message_mb * 1e6:
            raise Refused(
                f"an answer of {size / 1e6:.1f} MB exceeds the site's limit of "
                f"{self.max_message_mb:g} MB (policy.max_message_mb)"
            )

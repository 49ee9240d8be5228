"""What a site allows: which methods run on its images and what may leave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from fedshift import UserError
from fedshift.protocol.messages import Purpose


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
    release: tuple[str, ...] = tuple(purpose.value for purpose in Purpose)
    max_message_mb: float = 1000.0
    min_count: int = 4

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Policy:
        """Build from the config node ``policy``; raises :class:`UserError` naming the key."""
        known = {item.name for item in fields(cls)}
        for key in config:
            if key not in known | {"name"}:
                raise UserError(f"policy.{key} is not a policy; use one of {sorted(known)}")
        purposes = {purpose.value for purpose in Purpose}
        release = tuple(config.get("release", cls.release))
        for purpose in release:
            if purpose not in purposes:
                raise UserError(f"policy.release holds '{purpose}'; use some of {sorted(purposes)}")
        min_count = config.get("min_count", cls.min_count)
        if not isinstance(min_count, int) or min_count < 1:
            raise UserError(f"policy.min_count is {min_count!r}; use a whole number of at least 1")
        max_message_mb = config.get("max_message_mb", cls.max_message_mb)
        if not isinstance(max_message_mb, int | float) or max_message_mb <= 0:
            raise UserError(
                f"policy.max_message_mb is {max_message_mb!r}; use a number of megabytes above 0"
            )
        return cls(
            methods=tuple(config.get("methods", cls.methods)),
            release=release,
            max_message_mb=float(max_message_mb),
            min_count=min_count,
        )

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

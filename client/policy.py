"""What a site allows: which methods run on its images and what may leave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fedshift import UserError
from fedshift.protocol.messages import RELEASABLE, Purpose
from fedshift.protocol.settings import from_mapping, setting, suggest

_SHORTEST_SECRET = 16


class Refused(Exception):
    """The site's policy does not allow what was asked; the message says what and which key."""


@dataclass(frozen=True)
class Policy:
    """A site's rules. The defaults allow everything a simulation needs and never an image.

    ``methods``: names of the methods that may train here, or ``("*",)`` for all.
    ``release``: which purposes may leave. ``max_message_mb``: the largest answer, in 10^6 bytes.
    ``min_count``: fewest images that a published statistic may summarise. ``hash_key``: the file
    with the secret under which image hashes are sent, the same at every site that compares them;
    the coordinator must lack it.
    """

    methods: tuple[str, ...] = ("*",)
    release: tuple[str, ...] = tuple(p for p in RELEASABLE if p != Purpose.HASHES.value)
    max_message_mb: float = setting(1000.0, at_least=0)
    min_count: int = setting(4, at_least=1)
    hash_key: str | None = None

    def __post_init__(self) -> None:
        for purpose in self.release:
            if purpose not in RELEASABLE:
                raise UserError(f"policy.release holds {purpose!r}{suggest(purpose, RELEASABLE)}")

        if (Purpose.HASHES in self.release) != (self.hash_key is not None):
            raise UserError(
                "image hashes leave a site under a secret only: name them in policy.release and "
                "the secret's file in policy.hash_key, or neither"
            )

    def releases(self, purpose: Purpose) -> bool:
        """Whether anything may leave for ``purpose``."""
        return purpose.value in self.release

    @cached_property
    def secret(self) -> bytes:
        """The content of ``hash_key``; raises :class:`UserError` when it cannot be read or is so
        short that it could be guessed."""
        path = Path(self.hash_key or "").expanduser()
        try:
            secret = path.read_bytes().strip()
        except OSError as error:
            raise UserError(
                f"policy.hash_key: {path} cannot be read ({error.strerror}); name the file with "
                "the secret that the sites share"
            ) from error
        if len(secret) < _SHORTEST_SECRET:
            raise UserError(
                f"policy.hash_key: {path} holds fewer than {_SHORTEST_SECRET} bytes, which can be "
                "guessed; fill it with random ones, as `openssl rand -hex 32` prints"
            )
        return secret

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
        if not self.releases(purpose):
            raise Refused(f"the site's policy does not release a '{purpose}' (policy.release)")
        if size > self.max_message_mb * 1e6:
            raise Refused(
                f"an answer of {size / 1e6:.1f} MB exceeds the site's limit of "
                f"{self.max_message_mb:g} MB (policy.max_message_mb)"
            )

"""How a site's key becomes the id of its node in Flower's messages."""

from __future__ import annotations

import hashlib


def node_id(public_key: bytes) -> int:
    """The id of the site with that public key: the same after every restart of either end, and no
    small number, which Flower keeps for itself."""
    return int.from_bytes(hashlib.sha256(public_key).digest()[:7], "big") | 1 << 55

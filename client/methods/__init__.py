"""The methods: a module, or a folder, is one (:mod:`fedshift.protocol.registry`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedshift.protocol.registry import Registry

if TYPE_CHECKING:
    from fedshift.client.contract.method import Method

METHODS: Registry[Method] = Registry(
    "method", __name__, "fedshift.methods", "fedshift.client.contract.method:Method"
)
"""Each is a dataclass whose fields are its settings: the config's node ``method``."""

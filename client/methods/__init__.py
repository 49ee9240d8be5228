"""The methods by name. A method's module is imported when the method is built, not before."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from fedshift import UserError
from fedshift.client.contract.method import Method
from fedshift.protocol.settings import from_mapping, suggest

METHODS = {
    "drai": "fedshift.client.methods.drai:DRAI",
    "online_rendering": "fedshift.client.methods.online_rendering:OnlineRendering",
    "style_transfer": "fedshift.client.methods.style_transfer:StyleTransfer",
    "supervised": "fedshift.client.methods.supervised:Supervised",
    "unet_gan": "fedshift.client.methods.unet_gan:UnetGAN",
}
"""Method's name -> ``module:class``; the class is a dataclass whose fields are its settings."""


def build(name: str, settings: Mapping[str, Any]) -> Method:
    """Return the method ``name`` with ``settings``: the config's ``method`` group, less ``name``.

    Raises :class:`fedshift.UserError` for an unknown method or setting and for a value of the
    wrong type or out of range.
    """
    if name not in METHODS:
        raise UserError(f"method={name} is not known{suggest(name, METHODS)}")
    module, _, attribute = METHODS[name].partition(":")
    cls: type[Method] = getattr(import_module(module), attribute)
    return from_mapping(cls, settings, "method")

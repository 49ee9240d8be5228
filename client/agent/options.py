"""What a site is started with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedshift import UserError
from fedshift.client.policy import Policy
from fedshift.protocol.storage import read_yaml

DEPLOYED = Path(__file__).parents[2] / "configs" / "policy" / "deployed.yaml"
"""The commented policy that a site begins with."""


@dataclass(frozen=True)
class SiteOptions:
    """A site's ``name``, the config node ``data`` of its own settings, the config node of its
    ``policy``, the ``own`` settings of methods (files at the site), the torch ``device`` (``auto``:
    a GPU where there is one) and its number of ``threads``."""

    name: str
    data: Mapping[str, Any]
    policy: Mapping[str, Any]
    own: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"
    threads: int = 1
    amp: bool = True


def policy_of(path: Path | None) -> Mapping[str, Any]:
    """The site's policy: that of ``path`` over what is deployed by default. Raises
    :class:`UserError` naming the key that is wrong."""
    given = {} if path is None else read_yaml(path)
    if given is None:
        raise UserError(f"{path} is no file; `fedshift client policy` prints one to begin with")
    merged = {**(read_yaml(DEPLOYED) or {}), **given}
    Policy.from_config(merged)
    return merged

"""What is stopped before it is aggregated: what is misshapen, not finite, or not asked for.

``tensors`` are those that travel, by name, and ``trained`` the examples by sub-network.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedshift.protocol.answers import (
    LARGEST_NUMBER,
    Unfit,
    check_tensor,
    clean,
    extent,
    odd_ones,
)
from fedshift.protocol.messages import Arrays, TensorInfo


def check_update(
    arrays: Mapping[str, np.ndarray],
    trained: Mapping[str, float],
    tensors: Mapping[str, TensorInfo],
) -> None:
    """Raise :class:`Unfit` where an update, or what is sent beside it, cannot be used. A site that
    had nothing to train in this round sends nothing, which is no fault."""
    for name in arrays:
        info = tensors.get(name)
        if info is None:
            raise Unfit(f"sent the tensor {clean(name, 200)}, which does not travel")
        if info.network not in trained:
            raise Unfit(f"sent the tensor {name} of a sub-network it does not say it trained")
        check_tensor(name, arrays[name], info)


def check_complete(
    arrays: Mapping[str, np.ndarray],
    trained: Mapping[str, float],
    tensors: Mapping[str, TensorInfo],
) -> None:
    """Raise :class:`Unfit` where an update lacks a tensor of an averaged or broadcast sub-network
    it trained."""
    for name, info in tensors.items():
        if name not in arrays and info.network in trained and not info.domains:
            raise Unfit(f"sent {info.network} without its tensor {name}")


def odd_publications(
    published: Mapping[str, Arrays], domains: Mapping[str, str], bank: Mapping[str, Arrays]
) -> dict[str, str]:
    """Of the sites that ``published`` this round, those whose statistics no other could read, and
    why: other arrays than most sites of their domain, or of another shape than most sites'. The
    ``bank`` holds what was published before."""
    odd = {site: how for site, how in odd_ones({**bank, **published}).items() if site in published}
    kinds: dict[str, dict[frozenset[str], list[str]]] = {}
    for site in sorted(published):
        kinds.setdefault(domains[site], {}).setdefault(frozenset(published[site]), []).append(site)
    for found in kinds.values():
        usual = max(found, key=lambda names: len(found[names]))
        for names, sites in found.items():
            if names != usual:
                how = f"published other statistics than most sites: {clean(min(names ^ usual))}"
                odd.update(dict.fromkeys(sites, how))
    return odd


def check_result(name: str, array: np.ndarray) -> None:
    """Raise :class:`Unfit` where what was combined is no tensor of a network any more."""
    if fault := extent(array, LARGEST_NUMBER):
        raise Unfit(f"{name} was combined to one {fault}, so all stays as it was")

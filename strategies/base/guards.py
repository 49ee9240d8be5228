"""What is stopped before it is aggregated: what is misshapen, not finite, or not asked for.

Each guard returns the reason, to follow the site's name, or None where all is well. ``tensors`` are
those that travel, by name, and ``trained`` the examples by sub-network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from fedshift.protocol.messages import TensorInfo


def misfit(
    arrays: Mapping[str, np.ndarray],
    trained: Mapping[str, float],
    tensors: Mapping[str, TensorInfo],
) -> str | None:
    """Why an update cannot be used. A site that had nothing to train in this round sends nothing,
    which is no fault."""
    if not all(0 < examples < math.inf for examples in trained.values()):
        return "trained on no example"
    for name in arrays:
        if fault := _tensor_fault(name, arrays[name], trained, tensors):
            return fault
    return None


def misfit_extras(
    extras: Mapping[str, np.ndarray],
    trained: Mapping[str, float],
    tensors: Mapping[str, TensorInfo] | None,
) -> str | None:
    """Why what was sent beside the model cannot be used; without ``tensors`` nothing was asked."""
    if extras and tensors is None:
        return "sent extras, which nobody asked for"
    for name in extras:
        if fault := _tensor_fault(name, extras[name], trained, tensors or {}):
            return f"{fault} (beside the model)"
    return None


def _tensor_fault(
    name: str,
    array: np.ndarray,
    trained: Mapping[str, float],
    tensors: Mapping[str, TensorInfo],
) -> str | None:
    info = tensors.get(name)
    if info is None:
        return f"sent the tensor {name}, which does not travel"
    if info.network not in trained:
        return f"sent the tensor {name} of a sub-network it does not say it trained"
    if array.shape != tuple(info.shape):
        return f"sent {name} of shape {array.shape} instead of {tuple(info.shape)}"
    if array.dtype.name != info.dtype:
        return f"sent {name} of type {array.dtype.name} instead of {info.dtype}"
    return None if _finite(array) else f"sent a non-finite update: {name}"


def incomplete(
    arrays: Mapping[str, np.ndarray],
    trained: Mapping[str, float],
    tensors: Mapping[str, TensorInfo],
) -> str | None:
    """Which tensor an update lacks of an averaged or broadcast sub-network it trained."""
    for name, info in tensors.items():
        if name not in arrays and info.network in trained and not info.domains:
            return f"sent {info.network} without its tensor {name}"
    return None


def not_finite(published: Mapping[str, np.ndarray]) -> str | None:
    """Which published statistic holds numbers that are not finite."""
    for name, array in published.items():
        if not _finite(array):
            return f"published a non-finite statistic: {name}"
    return None


def _finite(array: np.ndarray) -> bool:
    if not np.issubdtype(array.dtype, np.floating):
        return True
    # A sum of squares is finite only where every number is, and takes half the time. It may
    # overflow, too: then each number is looked at.
    flat = array.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.dot(flat, flat)) or np.isfinite(array).all())

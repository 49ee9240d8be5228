"""What a strategy adds to a site's local objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from fedshift.client.model import Model

Penalty = Callable[[Mapping[str, nn.Module]], torch.Tensor]


def build_penalty(terms: Mapping[str, float], model: Model, kept: frozenset[str]) -> Penalty | None:
    """The penalty that ``terms`` describe, around the weights now loaded; None for no terms.

    Raises ``ValueError`` for a term this site does not know.
    """
    unknown = sorted(set(terms) - {"proximal"})
    if unknown:
        raise ValueError(f"the strategy asks for the local term '{unknown[0]}', unknown here")
    if "proximal" not in terms:
        return None
    return _proximal(terms["proximal"], model, kept)


def _proximal(mu: float, model: Model, kept: frozenset[str]) -> Penalty:
    """(mu / 2) ||w - w_t||^2 over the exchanged parameters: Li et al., Federated Optimization in
    Heterogeneous Networks, MLSys 2020, Eq. 2. (The norm is squared; some docstrings forget it.)"""
    pairs = [
        (tensor, tensor.detach().clone())
        for name, tensor in model.tensors().items()
        if name not in kept and tensor.requires_grad
    ]

    def penalty(nets: Mapping[str, nn.Module]) -> torch.Tensor:
        squares = [torch.sum((tensor - start) ** 2) for tensor, start in pairs]
        return 0.5 * mu * torch.stack(squares).sum()

    return penalty

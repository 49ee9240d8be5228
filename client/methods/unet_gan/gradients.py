"""Gradients as the sites exchange them, and Adam's moments as a site remembers them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from fedshift.client.contract.method import Networks, StatisticsBank
from fedshift.client.methods.unet_gan.side import SOURCE, Side, targets_of

Gradients = dict[str, list[torch.Tensor]]
"""By sub-network, in the order of its parameters."""

BETAS = (0.5, 0.99)
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def gradients_of(
    loss: torch.Tensor, names: Sequence[str], nets: Networks, *, again: bool = False
) -> Gradients:
    """The gradients of ``loss`` by the networks' parameters, zero where it does not depend on
    them. ``again``: another loss will be differentiated through the same graph."""
    parameters = {name: list(nets[name].parameters()) for name in names}
    flat = torch.autograd.grad(
        loss,
        [parameter for group in parameters.values() for parameter in group],
        retain_graph=again,
        allow_unused=True,
        materialize_grads=True,
    )
    found = iter(flat)
    return {name: [next(found) for _ in group] for name, group in parameters.items()}


def set_gradients(net: nn.Module, values: Sequence[torch.Tensor]) -> None:
    for parameter, value in zip(net.parameters(), values, strict=True):
        parameter.grad = value


def add(total: Gradients, more: Gradients) -> None:
    """Add ``more`` to ``total`` in place."""
    for name, values in more.items():
        for kept, value in zip(total[name], values, strict=True):
            kept.add_(value)


def published(sums: Gradients, nets: Networks, steps: int, examples: int) -> dict[str, np.ndarray]:
    """The mean of a site's own gradients over its steps, for the other domain's next round."""
    found = {"examples": np.asarray(examples, np.int64)}
    for name, values in sums.items():
        for (key, _), value in zip(nets[name].named_parameters(), values, strict=True):
            found[f"gradient/{name}/{key}"] = (value / steps).cpu().numpy()
    return found


def others_gradients(
    bank: StatisticsBank, side: Side, domain: str, nets: Networks, device: torch.device
) -> Gradients | None:
    """The other domain's mean gradient: at the source the target's, at the target the mean of the
    source sites' weighted by their examples. None when nobody published one yet."""
    targets = targets_of(nets)
    sites = [side.target] if domain == SOURCE else sorted(set(bank) - set(targets))
    names = (*side.translators, *side.judges)
    keys = {
        name: [f"gradient/{name}/{k}" for k, _ in nets[name].named_parameters()] for name in names
    }
    sites = [site for site in sites if keys[side.there][0] in bank.get(site, {})]
    if not sites:
        return None
    weights = np.array([float(bank[site]["examples"]) for site in sites])
    weights /= weights.sum()
    found: Gradients = {}
    for name in names:
        found[name] = []
        for key in keys[name]:
            mean = sum(w * bank[site][key] for w, site in zip(weights, sites, strict=True))
            found[name].append(torch.from_numpy(np.asarray(mean, np.float32)).to(device))
    return found


def recall(
    name: str, net: nn.Module, rate: float, memory: Mapping[str, np.ndarray]
) -> torch.optim.Adam:
    """Adam for ``net`` with the moments of the site's last round, if it had one."""
    optimizer = torch.optim.Adam(net.parameters(), lr=rate, betas=BETAS)
    for key, parameter in net.named_parameters():
        noted = {kind: memory.get(f"{kind}/{name}/{key}") for kind in _MOMENTS}
        if noted["step"] is not None:
            optimizer.state[parameter] = {
                kind: torch.tensor(array, device="cpu" if kind == "step" else parameter.device)
                for kind, array in noted.items()
            }
    return optimizer


def remember(
    name: str, net: nn.Module, optimizer: torch.optim.Adam, memory: dict[str, np.ndarray]
) -> None:
    """Note the moments, if there was a step."""
    for key, parameter in net.named_parameters():
        for kind, value in optimizer.state[parameter].items():
            memory[f"{kind}/{name}/{key}"] = value.cpu().numpy()

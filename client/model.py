"""A method's networks as named arrays: building, describing, loading and reading them.

A tensor's name is ``<sub-network>/<its name in the network>``.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from fedshift import UserError, derive_seed
from fedshift.client.contract.method import Budget, FitReport, Method, Networks, StatisticsBank
from fedshift.client.contract.step import Decoder, Encoder
from fedshift.client.methods import METHODS
from fedshift.client.tasks import TASKS
from fedshift.protocol import needs
from fedshift.protocol.cards import MethodCard
from fedshift.protocol.messages import Arrays, TensorInfo
from fedshift.protocol.settings import suggest
from fedshift.sites.types import SiteData

_NORM_LAYERS = (_NormBase, nn.GroupNorm, nn.LayerNorm)


class Model:
    """A method and its networks on one device, whose weights are loaded for every message."""

    def __init__(
        self, method: Mapping[str, Any], task: Mapping[str, Any], device: torch.device, seed: int
    ) -> None:
        """Networks start from the weights that ``seed`` determines, the same at every site.

        Raises :class:`fedshift.UserError` for unknown or wrong settings, and for a method whose
        networks, sharing and steps do not name the same.
        """
        self.method: Method = METHODS.build(method)
        self.task = TASKS.build(task)
        self.method.check_serves(type(self.task))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "initial weights"))
            nets = self.method.networks(self.task)
        self.device = device
        self.nets: Networks = {name: net.to(device) for name, net in nets.items()}
        self.check_names("stepped", self.method.stepped)
        sharing = self.method.sharing(self.task)
        self.check_names("sharing", sharing)
        if unsaid := sorted(self.nets.keys() - sharing.keys()):
            raise UserError(
                f"method={METHODS.name_of(type(self.method))}: sharing does not say how the "
                f"sub-network {unsaid[0]} travels; add it, such as {unsaid[0]}: AVERAGED"
            )

    def check_names(self, where: str, names: Iterable[str]) -> None:
        """Raise :class:`fedshift.UserError` when the method names in ``where`` what is none of its
        networks: it would be left out of the federation in silence."""
        for name in names:
            if name not in self.nets:
                raise UserError(
                    f"method={METHODS.name_of(type(self.method))}: {where} names {name}, which is "
                    f"none of its networks{suggest(name, self.nets)}"
                )

    def fit(self, site: SiteData, bank: StatisticsBank, budget: Budget) -> FitReport:
        """Train the networks as the method does; raises :class:`fedshift.UserError` when its report
        is none, or names what is none of its networks."""
        report = self.method.fit(site, self.nets, bank, budget)
        if not isinstance(report, FitReport):
            raise UserError(
                f"method={METHODS.name_of(type(self.method))}: fit returns "
                f"{type(report).__name__}; return a FitReport of what it trained"
            )
        self.check_names("FitReport.trained", report.trained)
        return report

    def card(self, task: str) -> MethodCard:
        """What the coordinator knows of it and of the task, which is registered as ``task``."""
        return MethodCard(
            tensors=self.infos(),
            participation=self.method.participation.value,
            stages=self.method.stages,
            task=self.task.card(task),
            offers=tuple(sorted(self.offers())),
            complete_labels=self.method.complete_labels,
            adapts=self.method.adapts,
            augments=hasattr(self.method, "augmentation"),
        )

    def infos(self) -> dict[str, TensorInfo]:
        """What a strategy must know of each tensor."""
        sharing = self.method.sharing(self.task)
        infos = {}
        for network, net in self.nets.items():
            norms = {
                f"{prefix}.{name}" if prefix else name
                for prefix, module in net.named_modules()
                if isinstance(module, _NORM_LAYERS)
                for name in module.state_dict(keep_vars=True)
            }
            parameters = {name for name, _ in net.named_parameters()}
            for name, tensor in net.state_dict(keep_vars=True).items():
                role = "weight"
                if name in norms:
                    role = "norm" if name in parameters else "norm_buffer"
                infos[f"{network}/{name}"] = TensorInfo(
                    network=network,
                    role=role,
                    sharing=sharing[network].kind,
                    shape=tuple(tensor.shape),
                    dtype=str(tensor.dtype).removeprefix("torch."),
                    domains=sharing[network].domains,
                    adam=sharing[network].adam,
                )
        return infos

    def offers(self) -> frozenset[str]:
        """What a strategy may need of the method, its networks and the task
        (:mod:`fedshift.protocol.needs`)."""
        stepped = [self.nets[name] for name in self.method.stepped]
        found = {
            needs.CHANGE: True,
            needs.DESCEND: True,
            needs.ENCODER: all(isinstance(net, Encoder) for net in stepped),
            needs.DECODER: all(isinstance(net, Decoder) for net in stepped),
        }
        return self.task.offers.union(name for name, given in found.items() if stepped and given)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The live tensors by name."""
        return {
            f"{network}/{name}": tensor
            for network, net in self.nets.items()
            for name, tensor in net.state_dict(keep_vars=True).items()
        }

    @torch.no_grad()
    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Copy ``arrays`` onto the device; raises ``ValueError`` unless they are exactly the
        model's tensors with their shapes."""
        tensors = self.tensors()
        if tensors.keys() != arrays.keys():
            odd = sorted(tensors.keys() ^ arrays.keys())
            raise ValueError(
                f"the model sent and the method's networks differ in {len(odd)} tensors, "
                f"the first is {odd[0]}"
            )
        for name, tensor in tensors.items():
            array = arrays[name]
            if tuple(array.shape) != tuple(tensor.shape):
                raise ValueError(
                    f"tensor {name} has shape {tuple(array.shape)}; "
                    f"the method's network has {tuple(tensor.shape)}"
                )
            tensor.copy_(torch.from_numpy(array))

    def read(self, names: Collection[str] | None = None) -> Arrays:
        """Copy all tensors, or those called ``names``, off the device."""
        return {
            name: _array(tensor)
            for name, tensor in self.tensors().items()
            if names is None or name in names
        }

    def kept(self) -> frozenset[str]:
        """The tensors that the method never lets leave their site."""
        sharing = self.method.sharing(self.task)
        return frozenset(
            name for name in self.tensors() if sharing[network_of(name)].kind == "kept"
        )

    def forget_gradients(self) -> None:
        """Drop what an earlier message left in the parameters' ``grad``."""
        for net in self.nets.values():
            net.zero_grad(set_to_none=True)

    def update(self, trained: Collection[str], kept: Collection[str]) -> Arrays:
        """What a site sends of the sub-networks it ``trained``: the weights or, of a summed one,
        the gradients; nothing of the tensors ``kept``."""
        sharing = self.method.sharing(self.task)
        sent = {}
        for name, tensor in self.tensors().items():
            network = network_of(name)
            if network not in trained or name in kept or sharing[network].kind == "kept":
                continue
            if sharing[network].kind != "summed":
                sent[name] = _array(tensor)
            elif tensor.grad is not None:
                sent[name] = _array(tensor.grad)
        return sent


def network_of(name: str) -> str:
    """The sub-network of the tensor called ``name``."""
    return name.split("/", maxsplit=1)[0]


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().copy()


def initial_arrays(method: Mapping[str, Any], task: Mapping[str, Any], seed: int) -> Arrays:
    """The weights every site starts from."""
    return Model(method, task, torch.device("cpu"), seed).read()


def shared_model(method: Mapping[str, Any], task: Mapping[str, Any], device: torch.device) -> Model:
    """One set of networks a process, whatever the number of sites it serves: every message
    loads its own weights into it."""
    return _cached_model(json.dumps(dict(method)), json.dumps(dict(task)), str(device))


@lru_cache(maxsize=1)
def _cached_model(method: str, task: str, device: str) -> Model:
    return Model(json.loads(method), json.loads(task), torch.device(device), seed=0)

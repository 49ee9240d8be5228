"""A convex federation for tests: site k minimises a_k / 2 |w - c_k|^2 and counts n_k examples.

Sites train by gradient descent through the same rules, and are asked by the same messages, as real
ones; only the network is a vector (or two, a ``body`` and a ``head``) and there are no images.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from fedshift import derive_seed
from fedshift.client import rules
from fedshift.client.contract.method import Budget, FitReport
from fedshift.client.rules.base import Visit, run_rules
from fedshift.protocol import messages as protocol
from fedshift.protocol.flower import ConfigRecord, Message
from fedshift.protocol.messages import (
    Action,
    Arrays,
    Instruction,
    TensorInfo,
    answer,
    pack_arrays,
    read_arrays,
    unpack_arrays,
)
from fedshift.strategies.base import Strategy

CURVATURE = {"a": 1.0, "b": 2.0, "c": 0.5}
CENTRE = {"a": np.array([1.0, -1.0]), "b": np.array([0.0, 3.0]), "c": np.array([-4.0, 2.0])}
EXAMPLES = {"a": 10, "b": 30, "c": 20}


class Vectors(nn.Module):
    """One parameter a name, of two numbers."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.zeros(2, dtype=torch.float64)))


class VectorModel:
    """What rules use of a :class:`fedshift.client.model.Model`."""

    def __init__(self, names: Collection[str]) -> None:
        self.nets: dict[str, nn.Module] = {"net": Vectors(names)}
        self.loss: Callable[[], torch.Tensor] | None = None
        """The site's objective at the weights now loaded: its risk, for want of images."""

    def tensors(self) -> dict[str, torch.Tensor]:
        return {f"net/{name}": value for name, value in self.nets["net"].named_parameters()}

    def infos(self) -> dict[str, TensorInfo]:
        info = TensorInfo("net", "weight", "averaged", (2,), "float64")
        return dict.fromkeys(self.tensors(), info)

    def forget_gradients(self) -> None:
        self.nets["net"].zero_grad()

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        with torch.no_grad():
            for name, tensor in self.tensors().items():
                tensor.copy_(torch.from_numpy(arrays[name]))

    def read(self, names: Collection[str] | None = None) -> Arrays:
        return {
            name: tensor.detach().numpy().copy()
            for name, tensor in self.tensors().items()
            if names is None or name in names
        }


@dataclass
class Convex:
    """A federation of :data:`CENTRE`'s sites under ``strategy``, from zero.

    Every parameter of ``names`` has its own copy of the problem. Sites take ``steps`` steps of
    length ``rate`` a round of a run of ``planned`` rounds. ``model`` is the coordinator's;
    ``memory``, ``personal`` and ``kept`` are what each site has on its disk.
    """

    strategy: Strategy
    steps: int = 5
    rate: float = 0.1
    names: tuple[str, ...] = ("w",)
    centres: Mapping[str, np.ndarray] = field(default_factory=lambda: CENTRE)
    planned: int = 0
    model: Arrays = field(default_factory=dict)
    memory: dict[str, Arrays] = field(default_factory=dict)
    personal: dict[str, Arrays] = field(default_factory=dict)
    kept: dict[str, Arrays] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tensors = VectorModel(self.names).infos()
        instruction = Instruction(action=Action.FIT, seed=0, steps=self.steps, rounds=self.planned)
        self.sites = sorted(self.centres)
        nodes = {name: number for number, name in enumerate(self.sites, start=2)}
        self.strategy.begin(nodes, tensors, instruction)
        self.model = {name: np.zeros(2) for name in tensors}
        self.rounds = 0

    def run(self, rounds: int) -> np.ndarray:
        """Go on for ``rounds`` rounds; return the first vector of the coordinator's model."""
        for _ in range(rounds):
            self.rounds += 1
            shared = pack_arrays(self.strategy.shared(self.model))
            grid: Any = None
            asked = self.strategy.configure_train(self.rounds, shared, ConfigRecord(), grid)
            record, _ = self.strategy.aggregate_train(self.rounds, self._replies(asked))
            assert record is not None, self.strategy.outcome
            assert not self.strategy.outcome.rejected, self.strategy.outcome.rejected
            self.strategy.pass_time(self.rounds)
            self.model |= unpack_arrays(record)
        return self.model[f"net/{self.names[0]}"]

    def _replies(self, asked: Any) -> Iterator[Message]:
        for message in asked:
            yield self._train(self.strategy.names[message.metadata.dst_node_id], message)

    def loss(self, site: str, nets: Mapping[str, nn.Module]) -> torch.Tensor:
        """a_k / 2 |w - c_k|^2, summed over the vectors."""
        centre = torch.from_numpy(self.centres[site])
        squares = [torch.sum((value - centre) ** 2) for value in nets["net"].parameters()]
        return 0.5 * CURVATURE[site] * torch.stack(squares).sum()

    def _train(self, site: str, message: Message) -> Message:
        """What a worker does with a request to train."""
        config = message.content[protocol.CONFIG]
        assert isinstance(config, ConfigRecord)
        instruction = Instruction.from_record(config)
        model = VectorModel(self.names)
        model.loss = partial(self.loss, site, model.nets)
        sent = read_arrays(message.content)
        initial = {name: np.zeros(2) for name in instruction.kept}
        model.load({**initial, **sent, **self.kept.get(site, {})})
        visit = Visit(
            instruction=instruction,
            site=cast(Any, SimpleNamespace(name=site)),
            model=cast(Any, model),
            device=torch.device("cpu"),
            extras=read_arrays(message.content, protocol.EXTRAS),
            memory=self.memory.get(site, {}),
            personal=self.personal.get(site, {}),
        )

        def fit(budget: Budget) -> FitReport:
            optimizer = torch.optim.SGD(model.nets["net"].parameters(), lr=self.rate)
            for _ in range(budget.steps):
                loss = self.loss(site, model.nets)
                penalty = budget.step.penalty(model.nets, {})
                loss = loss if penalty is None else loss + penalty
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            return FitReport({"net": EXAMPLES[site]})

        seed = derive_seed(0, site, instruction.round)
        none = cast(Any, None)  # No task: the objective is the vectors' own.
        device = torch.device("cpu")
        budget = Budget(none, instruction.steps, seed, device, round=instruction.round)
        report = run_rules(rules.build(visit), fit, budget)
        self.memory[site] = visit.memory
        self.personal[site] = visit.personal
        self.kept[site] = model.read(instruction.kept)
        self.metrics[site] = report.metrics
        arrays = {
            name: array for name, array in model.read().items() if name not in instruction.kept
        }
        content = answer(
            site,
            arrays=pack_arrays(arrays),
            extras=visit.sent,
            metrics={protocol.EXAMPLES: EXAMPLES[site], **report.metrics},
            details={"trained": report.trained, "domain": ""},
        )
        return Message(content, reply_to=message)

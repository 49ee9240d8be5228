"""The base of every strategy: who takes part, what travels, and the guards of aggregation.

It is a Flower strategy whose replies may be a stream: they are folded one at a time, so memory is
a fixed number of models whatever the number of sites. What Flower lets through is stopped here: a
non-finite or misshapen update is rejected and counted, a failing site is named and kept out, sites
may report different metrics, and a round without a quorum leaves the model as it was.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from fedshift import UserError, derive_seed
from fedshift.protocol import messages as protocol
from fedshift.protocol.flower import (
    ArrayRecord,
    ConfigRecord,
    FlowerStrategy,
    Grid,
    Message,
    MetricRecord,
    RecordDict,
)
from fedshift.protocol.messages import (
    Action,
    Arrays,
    Instruction,
    TensorInfo,
    content_bytes,
    pack_arrays,
    read_arrays,
    unpack_arrays,
)
from fedshift.protocol.settings import setting
from fedshift.strategies.adam import ServerAdam
from fedshift.strategies.aggregate import DomainMeans


@dataclass
class RoundOutcome:
    """What happened in one round: metrics and bytes by site, who failed or was rejected and why.

    ``skipped`` says why the model was left unchanged, or is None.
    """

    sites: dict[str, dict[str, float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    skipped: str | None = None
    bytes_down: Counter[str] = field(default_factory=Counter)
    bytes_up: Counter[str] = field(default_factory=Counter)
    statistics: dict[str, Arrays] = field(default_factory=dict)


@dataclass(eq=False)
class Strategy(FlowerStrategy):
    """Which sites train, which tensors are combined, and how. Its fields are its settings."""

    model: ClassVar[str] = "federated"
    """The arm's name: what sites keep state under and what ``rounds.jsonl`` calls it."""
    exchanges: ClassVar[bool] = True
    """Whether what a site publishes reaches the others."""

    fraction: float = setting(1.0, at_least=0, at_most=1)
    """The share of the sites drawn each round; never fewer than ``min_sites``."""
    min_sites: int = setting(1, at_least=1)
    """The quorum: with fewer usable updates a round leaves the model as it was."""
    weighting: Literal["examples", "uniform"] = "examples"
    """Whether a site counts by its labelled training slices, or all alike."""

    # What a strategy decides.

    def keeps(self, tensors: Mapping[str, TensorInfo]) -> frozenset[str]:
        """The tensors that stay at their site: those the method keeps, by default no others."""
        return frozenset(name for name, info in tensors.items() if info.sharing == "kept")

    def terms(self) -> dict[str, float]:
        """What a site adds to its local objective; nothing by default."""
        return {}

    # A run.

    def begin(
        self,
        sites: Mapping[str, int],
        tensors: Mapping[str, TensorInfo],
        instruction: Instruction,
    ) -> None:
        """Bind to a run: its training sites (name -> Flower node), tensors and instruction.

        Raises :class:`UserError` when there are fewer sites than ``min_sites``.
        """
        if len(sites) < self.min_sites:
            raise UserError(
                f"strategy.min_sites is {self.min_sites} and the federation has {len(sites)} "
                "sites that train; lower it or add sites"
            )
        self.sites = dict(sorted(sites.items()))
        self.names = {node: name for name, node in self.sites.items()}
        self.tensors = dict(tensors)
        self.kept = self.keeps(tensors)
        self.instruction = instruction.but(
            arm=self.model, kept=tuple(sorted(self.kept)), terms=self.terms()
        )
        self.outcome = RoundOutcome()
        self.bank: dict[str, Arrays] = {}
        self._adam = ServerAdam()
        self._current: Arrays = {}

    @property
    def state(self) -> Arrays:
        """What the coordinator keeps between rounds beside the model and the bank."""
        return self._adam.state

    @state.setter
    def state(self, arrays: Arrays) -> None:
        self._adam.state = arrays

    def shared(self, arrays: Mapping[str, np.ndarray]) -> Arrays:
        """The part of ``arrays`` that travels."""
        return {name: array for name, array in arrays.items() if name not in self.kept}

    def select(self, server_round: int) -> list[str]:
        """The names of the sites that train in this round, sorted; drawn by name and seed, since
        Flower's node ids are random."""
        count = max(self.min_sites, math.ceil(self.fraction * len(self.sites)))
        names = list(self.sites)
        if count >= len(names):
            return names
        seed = derive_seed(self.instruction.seed, server_round, "site sampling")
        chosen = np.random.default_rng(seed).choice(len(names), size=count, replace=False)
        return [names[index] for index in sorted(chosen)]

    # Flower's hooks.

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message a selected site, all sharing one packed model and bank."""
        self.outcome = RoundOutcome()
        self._current = unpack_arrays(arrays)
        return self._messages(Action.FIT, server_round, arrays, self.select(server_round))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every training site for the model's Dice on its validation split."""
        return self._messages(Action.VALIDATE, server_round, arrays, list(self.sites))

    def _messages(
        self, action: Action, server_round: int, arrays: ArrayRecord, names: list[str]
    ) -> list[Message]:
        instruction = self.instruction.but(action=action, round=server_round)
        bank = protocol.pack_bank(self.bank) if self.bank else None
        content = protocol.request(instruction, arrays, bank=bank)
        size = content_bytes(content)
        self.outcome.bytes_down.update(dict.fromkeys(names, size))
        return [
            Message(
                content=content,
                dst_node_id=self.sites[name],
                message_type=action.message_type,
                group_id=str(server_round),
            )
            for name in names
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold the replies as they come; None for the arrays when the model stays as it was."""
        means = DomainMeans(self.tensors)
        accepted = 0
        for reply in replies:
            name = self.names[reply.metadata.src_node_id]
            if reply.has_error():
                self.outcome.failed[name] = reply.error.reason or "no reason given"
                continue
            content = reply.content
            self.outcome.bytes_up[name] += content_bytes(content)
            metrics = _metrics(content)
            self.outcome.sites[name] = metrics
            try:
                arrays = read_arrays(content)
                published = read_arrays(content, protocol.STATISTICS)
                told = protocol.details(content)
                trained = {str(net): float(count) for net, count in told["trained"].items()}
            except (AttributeError, EOFError, KeyError, OSError, TypeError, ValueError) as error:
                self.outcome.rejected[name] = f"sent an update that cannot be read: {error}"
                continue
            fault = self._fault(arrays, published, trained) or _non_finite(published)
            if fault:
                self.outcome.rejected[name] = fault
                continue
            if published and self.exchanges:
                self.outcome.statistics[name] = published
            if self.weighting == "uniform":
                trained = dict.fromkeys(trained, 1.0)
            means.add(arrays, trained, str(told.get("domain", "")))
            accepted += bool(trained)
        self.bank.update(self.outcome.statistics)
        if accepted < self.min_sites:
            self.outcome.skipped = (
                f"{accepted} usable updates, {self.min_sites} needed (strategy.min_sites)"
            )
            return None, None
        if missing := means.missing():
            self.outcome.skipped = "; ".join(
                f"{network} stays as it was: no update from the domain {domain}"
                for network, domain in missing.items()
            )
        combined = self._current
        for name, update in means.result().items():
            adam = self.tensors[name].adam
            combined[name] = (
                update
                if adam is None
                else self._adam.step(name, combined[name], update, adam, server_round)
            )
        self._current = {}
        return pack_arrays(combined), _mean_metrics(self.outcome.sites)

    def _fault(self, arrays: Arrays, published: Arrays, trained: Mapping[str, float]) -> str | None:
        """Why an update cannot be used, or None. A site that had nothing to train in this round
        sends nothing, which is no fault."""
        if not all(0 < examples < math.inf for examples in trained.values()):
            return "trained on no example"
        for name, array in arrays.items():
            info = self.tensors.get(name)
            if info is None or name in self.kept:
                return f"sent the tensor {name}, which does not travel"
            if info.network not in trained:
                return f"sent the tensor {name} of a sub-network it does not say it trained"
            if array.shape != tuple(info.shape):
                return f"sent {name} of shape {array.shape} instead of {tuple(info.shape)}"
            if array.dtype.name != info.dtype:
                return f"sent {name} of type {array.dtype.name} instead of {info.dtype}"
        return _non_finite(arrays)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Add each site's validation metrics to its line of the round."""
        validated: dict[str, dict[str, float]] = {}
        for reply in replies:
            name = self.names[reply.metadata.src_node_id]
            if reply.has_error():
                self.outcome.failed.setdefault(name, reply.error.reason or "no reason given")
                continue
            self.outcome.bytes_up[name] += content_bytes(reply.content)
            metrics = _metrics(reply.content)
            if "val_dice" in metrics:
                validated[name] = metrics
                self.outcome.sites.setdefault(name, {})["val_dice"] = metrics["val_dice"]
        return _mean_metrics(validated)

    def summary(self) -> None:
        """Nothing to log: ``fedshift explain`` says what a strategy does."""


def _non_finite(arrays: Arrays) -> str | None:
    for name, array in arrays.items():
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            return f"non-finite update: {name}"
    return None


def _metrics(content: RecordDict) -> dict[str, float]:
    record = content.get(protocol.METRICS)
    if not isinstance(record, MetricRecord):
        return {}
    return {name: float(value) for name, value in record.items() if not isinstance(value, list)}


def _mean_metrics(sites: Mapping[str, Mapping[str, float]]) -> MetricRecord | None:
    """The mean of each metric over the sites that report it."""
    names = sorted({name for metrics in sites.values() for name in metrics})
    if not names:
        return None
    return MetricRecord(
        {
            name: float(np.mean([metrics[name] for metrics in sites.values() if name in metrics]))
            for name in names
        }
    )

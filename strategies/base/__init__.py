"""The base of every strategy: who takes part, what travels, and the guards of aggregation.

It is a Flower strategy whose replies may be a stream: they are folded one at a time, so memory is
a fixed number of models whatever the number of sites. What Flower lets through is stopped here: a
non-finite or misshapen update is rejected and counted, a failing site is named and kept out, sites
may report different metrics, and a round without a quorum leaves the model as it was.

A subclass says what stays at the sites (``keeps``) and what it changes in their training
(``rules``), what travels beside the model (``extras``), what it makes of an update (``prepared``),
how updates are combined (``gathering``), how the coordinator moves the model towards what they
combine to (``step``), and what it does at the end of a round (``finish``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

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
)
from fedshift.protocol.settings import setting
from fedshift.strategies import STRATEGIES
from fedshift.strategies.base import guards
from fedshift.strategies.base.adam import adam_step
from fedshift.strategies.base.aggregate import DomainMeans, Unpacked, Update
from fedshift.strategies.base.replies import RoundOutcome, arrays_of, mean_metrics, metrics_of
from fedshift.strategies.base.timeline import Timeline

Family = Literal["nothing", "harmonise", "personalise", "robust"]
"""What to do about a federation: nothing (plain FedAvg), make up for images that differ, let
models differ, or hold against faulty sites."""


@dataclass(eq=False)
class Strategy(Timeline, FlowerStrategy):
    """Which sites train, which tensors are combined, and how. Its fields are its settings."""

    model: ClassVar[str] = "federated"
    """The arm's name: what sites keep state under and what ``rounds.jsonl`` calls it."""
    pools: ClassVar[bool] = False
    """Whether one simulated site trains, on the data of all."""
    personal: ClassVar[bool] = False
    """Whether sites end with a model of their own beside the shared one."""
    clocked: ClassVar[bool] = False
    """Whether it follows the simulated clock, so that it cannot do without one."""

    # What the advice goes by.
    family: ClassVar[Family | None] = None
    """What it does about a shift between sites or a fault of one; None for what answers another
    question: optimisers, client drift, fairness, rhythm."""
    plain: ClassVar[bool] = False
    """Whether it is among the plainest of its family, which are tried first."""
    site_bound: ClassVar[bool] = False
    """Whether what makes up for a shift stays at the sites, so that it is of no use to a site that
    never trains."""

    # What ``fedshift strategies`` and ``fedshift explain`` say of it.
    paper: ClassVar[str] = ""
    combines: ClassVar[str] = "averaged"
    """What becomes of the averaged and broadcast sub-networks."""
    travels: ClassVar[str] = "the model"
    stays: ClassVar[str] = "nothing"
    """What a site keeps, beside what the method keeps."""
    cost: ClassVar[tuple[int, int]] = (1, 1)
    """What a selected site receives and sends in a round, in sizes of the model, at most."""

    fraction: float = setting(1.0, at_least=0, at_most=1)
    """The share of the sites drawn each round; never fewer than ``min_sites``."""
    min_sites: int = setting(1, at_least=1)
    """The quorum: with fewer usable updates a round leaves the model as it was."""
    weighting: Literal["examples", "uniform"] = "examples"
    """Whether a site counts by its labelled training slices, or all alike."""

    @property
    def name(self) -> str:
        """What it is called in a config."""
        return STRATEGIES.name_of(type(self))

    # What a strategy decides.

    def keeps(self, tensors: Mapping[str, TensorInfo]) -> frozenset[str]:
        """The tensors that stay at their site: those the method keeps, by default no others."""
        return frozenset(name for name, info in tensors.items() if info.sharing == "kept")

    def rules(self) -> dict[str, dict[str, Any]]:
        """What a site changes in its local training: a rule of :mod:`fedshift.client.rules` and its
        settings; nothing by default. Asked before every round, and before :meth:`begin`."""
        return {}

    def needs(self) -> frozenset[str]:
        """What its rules need of the method, its networks and the task
        (:mod:`fedshift.protocol.needs`): with others it is refused; nothing by default."""
        return frozenset()

    def extras(self) -> Arrays:
        """What sites are sent beside the model when they train; nothing by default."""
        return {}

    def prepared(self, update: Update) -> Update:
        """What is folded of a site's accepted ``update``; by default all of it, as it is."""
        return update

    def gathering(self) -> DomainMeans:
        """What a round's updates are folded into; by default their means."""
        return DomainMeans(self.tensors)

    def step(self, name: str, combined: np.ndarray) -> np.ndarray:
        """The new value of a tensor in :attr:`steered` whose updates were ``combined``.

        By default that itself. A tensor of the model that was sent is ``self.current[name]``; what
        is to last goes into :attr:`state`.
        """
        return combined

    def finish(self) -> None:
        """Called once the new model of a round is made; not in a round without a quorum."""

    # A run.

    def bound_to_rounds(self) -> str:
        """What of a round depends on how many the run has, as a predicate of the strategy ("lowers
        its steps over the run"); empty if nothing does, so that a run may be made longer."""
        return ""

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
        self.steered = frozenset(
            name
            for name, info in tensors.items()
            if name not in self.kept
            and not info.domains
            and info.role != "norm_buffer"
            and np.issubdtype(info.dtype, np.floating)
        )
        """The tensors that training moves and this strategy decides about: of averaged and
        broadcast sub-networks, all but running statistics and integers."""
        self.instruction = instruction.but(arm=self.model, kept=tuple(sorted(self.kept)))
        self.outcome = RoundOutcome()
        self.bank: dict[str, Arrays] = {}
        self.state: Arrays = {}
        """What the coordinator keeps between rounds beside the model and the bank."""
        self._sent = ArrayRecord()
        self.validated = ""
        """The metric that sites answer when they validate: that of the task's headline."""
        self.clock, self.now = None, 0.0

    @property
    def travelling(self) -> dict[str, TensorInfo]:
        """The tensors that do not stay at their site."""
        return {name: info for name, info in self.tensors.items() if name not in self.kept}

    @property
    def current(self) -> Mapping[str, np.ndarray]:
        """The model that the sites were sent in this round, each tensor unpacked when asked for."""
        return Unpacked(self._sent)

    def place(self, site: str) -> int:
        """The index of a site among all that train, in the order of their names."""
        return list(self.sites).index(site)

    def drawn(self) -> int:
        """How many sites train in a round."""
        return min(len(self.sites), max(self.min_sites, math.ceil(self.fraction * len(self.sites))))

    def shared(self, arrays: Mapping[str, np.ndarray]) -> Arrays:
        """The part of ``arrays`` that travels."""
        return {name: array for name, array in arrays.items() if name not in self.kept}

    def select(self, server_round: int) -> list[str]:
        """The names of the sites that train in this round, sorted; drawn among those available by
        name and seed, since Flower's node ids are random."""
        return self._draw(self.available(server_round), self.drawn(), server_round)

    def _draw(self, names: list[str], count: int, server_round: int) -> list[str]:
        """``count`` of the ``names``, or all if there are fewer, in their order."""
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
        self._sent = arrays
        self.instruction = self.instruction.but(rules=self.rules())
        names = self.select(server_round)
        messages = self._messages(Action.FIT, server_round, arrays, names, self.extras())
        return self.in_time(server_round, messages)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every training site how the model does on its validation split."""
        return self._messages(Action.VALIDATE, server_round, arrays, list(self.sites))

    def _messages(
        self,
        action: Action,
        server_round: int,
        arrays: ArrayRecord,
        names: list[str],
        extras: Arrays | None = None,
    ) -> list[Message]:
        content = self._content(action, server_round, arrays, extras)
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

    def _content(
        self,
        action: Action,
        server_round: int,
        arrays: ArrayRecord,
        extras: Arrays | None = None,
    ) -> RecordDict:
        instruction = self.instruction.but(action=action, round=server_round)
        bank = protocol.pack_bank(self.bank) if self.bank else None
        beside = pack_arrays(extras) if extras else None
        return protocol.request(instruction, arrays, bank=bank, extras=beside)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold the replies as they come; None for the arrays when the model stays as it was."""
        gathered = self.gathering()
        accepted = 0
        for reply in replies:
            update = self._accepted(reply)
            if update is not None:
                gathered.add(self.prepared(update))
                accepted += bool(update.weights)
            del reply, update  # So that the last one is gone before the new model is made.
        self.bank.update(self.outcome.statistics)
        if accepted < self.min_sites:
            self.outcome.skipped = (
                f"{accepted} usable updates, {self.min_sites} needed (strategy.min_sites)"
            )
            return None, None
        if missing := gathered.missing():
            self.outcome.skipped = "; ".join(
                f"{network} stays as it was: {why}" for network, why in missing.items()
            )
        model = self._sent.copy()
        for name, combined in gathered.result():
            model.update(pack_arrays({name: self._moved(name, combined, server_round)}))
        self.finish()
        self._sent = ArrayRecord()
        return model, mean_metrics(self.outcome.sites)

    def _accepted(self, reply: Message) -> Update | None:
        """What a reply holds, or None when it is not to be used; the outcome says why."""
        name = self.names[reply.metadata.src_node_id]
        if reply.has_error():
            self.outcome.failed[name] = reply.error.reason or "no reason given"
            return None
        content = reply.content
        self.outcome.bytes_up[name] += content_bytes(content)
        metrics = self.outcome.sites[name] = metrics_of(content)
        arrays = arrays_of(content, protocol.ARRAYS)
        extras = arrays_of(content, protocol.EXTRAS)
        try:
            published = read_arrays(content, protocol.STATISTICS)
            told = protocol.details(content)
            trained = {str(net): float(count) for net, count in told["trained"].items()}
            fault = (
                self.fault(arrays, trained)
                or guards.misfit_extras(extras, trained, self.travelling if self.answered else None)
                or guards.not_finite(published)
            )
        except (AttributeError, EOFError, KeyError, OSError, TypeError, ValueError) as error:
            fault = f"sent an update that cannot be read: {error}"
        if fault:
            self.outcome.rejected[name] = fault
            return None
        if published and self.exchanges:
            self.outcome.statistics[name] = published
        if self.weighting == "uniform":
            trained = dict.fromkeys(trained, 1.0)
        return Update(name, arrays, trained, str(told.get("domain", "")), metrics, extras)

    def _moved(self, name: str, combined: np.ndarray, server_round: int) -> np.ndarray:
        """The new value of a tensor whose updates were ``combined``."""
        adam = self.tensors[name].adam
        if adam is not None:
            return adam_step(self.state, name, self.current[name], combined, adam, server_round)
        return self.step(name, combined) if name in self.steered else combined

    def fault(self, arrays: Mapping[str, np.ndarray], trained: Mapping[str, float]) -> str | None:
        """Why an update cannot be used, or None. A site that had nothing to train in this round
        sends nothing, which is no fault."""
        return guards.misfit(arrays, trained, self.travelling)

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
            metrics = metrics_of(reply.content)
            if self.validated in metrics:
                validated[name] = metrics
                reached = {self.validated: metrics[self.validated]}
                self.outcome.sites.setdefault(name, {}).update(reached)
        return mean_metrics(validated)

    def summary(self) -> None:
        """Nothing to log: ``fedshift explain`` says what a strategy does."""

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
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from fedshift import UserError, derive_seed
from fedshift.protocol import messages as protocol
from fedshift.protocol.answers import (
    MOST_COUNT,
    Unfit,
    read_published,
    read_trained,
    read_update_metrics,
    read_validation,
    reads,
    validated,
)
from fedshift.protocol.flower import (
    ArrayRecord,
    ConfigRecord,
    FlowerStrategy,
    Grid,
    Message,
    MetricRecord,
    RecordDict,
)
from fedshift.protocol.measures import Measure
from fedshift.protocol.messages import (
    Action,
    Arrays,
    Instruction,
    TensorInfo,
    content_bytes,
    pack_arrays,
)
from fedshift.protocol.settings import setting
from fedshift.strategies import STRATEGIES
from fedshift.strategies.base import guards
from fedshift.strategies.base.adam import adam_step
from fedshift.strategies.base.aggregate import DomainMeans, Unpacked, Update
from fedshift.strategies.base.replies import RoundOutcome, arrays_of, mean_metrics, shares_of
from fedshift.strategies.base.timeline import Timeline

_LEAST_PUBLISHED = 2**20
"""Bytes that a site may publish whatever the model's size; beside them four times the model's."""

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

    gaps: ClassVar[tuple[str, ...]] = ()
    """How the names of :attr:`state` begin whose numbers may be nan."""

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
    max_share: float | None = setting(None, at_least=0, at_most=1)
    """The largest share of the examples of a round's sites with which one counts, whatever its card
    says it has; null: no bound."""

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

        Raises :class:`UserError` when there are fewer sites than ``min_sites``, and for a
        ``max_share`` of sites that count alike.
        """
        if len(sites) < self.min_sites:
            raise UserError(
                f"strategy.min_sites is {self.min_sites} and the federation has {len(sites)} "
                "sites that train; lower it or add sites"
            )
        if self.max_share is not None and self.weighting == "uniform":
            raise UserError(
                "strategy.max_share bounds the examples that sites count with, and here all count "
                "alike; take it out, or set strategy.weighting=examples"
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
        self._most = math.inf
        self.headline: Measure | None = None
        """What sites measure when they validate; None before a run has told."""
        self.examples: Mapping[str, int] = {}
        """How many training slices each site has, as its card says: it counts for no more."""
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
        self._most = self._cap(names)
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
        state = dict(self.state)
        weights: dict[str, Mapping[str, float]] = {}
        domains: dict[str, str] = {}
        gathered = self.gathering()
        for reply in replies:
            update = self._accepted(reply)
            if update is not None:
                weights[update.site], domains[update.site] = update.weights, update.domain
                gathered.add(self.prepared(update))
            del reply, update  # So that the last one is gone before the new model is made.
        self._publish(domains)
        self.outcome.shares = shares_of(weights)
        if len(self.outcome.shares) < self.min_sites:
            self.outcome.skipped = (
                f"{len(self.outcome.shares)} usable updates, {self.min_sites} needed "
                "(strategy.min_sites)"
            )
            return None, None
        if missing := gathered.missing():
            self.outcome.skipped = "; ".join(
                f"{network} stays as it was: {why}" for network, why in missing.items()
            )
        model = self._sent.copy()
        try:
            for name, combined in gathered.result():
                moved = self._moved(name, combined, server_round)
                guards.check_result(name, moved)
                model.update(pack_arrays({name: moved}))
            self.finish()
            for name, held in self.state.items():
                if held is not state.get(name) and not name.startswith(self.gaps):
                    guards.check_result(name, held)
        except Unfit as fault:
            self.state = state
            self.outcome.skipped = str(fault)
            return None, None
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
        try:
            update, published = self._read(name, content)
            self.check(update)
        except Unfit as fault:
            self.outcome.rejected[name] = str(fault)
            return None
        if published and self.exchanges:
            self.outcome.statistics[name] = published
        return update

    @reads("an update")
    def _read(self, name: str, content: RecordDict) -> tuple[Update, Arrays]:
        """The update that site ``name`` sent, and what it publishes to the others."""
        most = self.examples.get(name, MOST_COUNT)
        told = read_trained(content, self.tensors, most)
        self.outcome.sites[name] = metrics = read_update_metrics(content, most)
        arrays, extras = arrays_of(content, protocol.ARRAYS), arrays_of(content, protocol.EXTRAS)
        guards.check_update(arrays, told.examples, self.travelling)
        if extras and not self.answered:
            raise Unfit("sent extras, which nobody asked for")
        guards.check_update(extras, told.examples, self.travelling)
        room = 4 * sum(len(array.data) for array in self._sent.values()) + _LEAST_PUBLISHED
        published = read_published(content, room)
        weights = self.weights_of(name, told.examples)
        return Update(name, arrays, weights, told.domain, metrics, extras), published

    def _moved(self, name: str, combined: np.ndarray, server_round: int) -> np.ndarray:
        """The new value of a tensor whose updates were ``combined``."""
        adam = self.tensors[name].adam
        if adam is not None:
            return adam_step(self.state, name, self.current[name], combined, adam, server_round)
        return self.step(name, combined) if name in self.steered else combined

    def _publish(self, domains: Mapping[str, str]) -> None:
        """Keep what the sites published in this round, but for what the others could not read."""
        published = self.outcome.statistics
        for site, how in guards.odd_publications(published, domains, self.bank).items():
            del published[site]
            self.outcome.rejected[site] = f"{how} (its update counts)"
        self.bank.update(published)

    def weights_of(self, site: str, examples: Mapping[str, float]) -> dict[str, float]:
        """How much a site counts in each sub-network that it trained on so many ``examples``."""
        if self.weighting == "uniform":
            return dict.fromkeys(examples, 1.0)
        return {network: min(count, self._most) for network, count in examples.items()}

    def _cap(self, names: Collection[str]) -> float:
        """The most examples that a site counts with, so that none of the sites drawn, were all to
        answer, has more than ``max_share`` of them together."""
        counts = np.sort([float(self.examples.get(name, 0)) for name in names])[::-1]
        if self.max_share is None or not counts.any():
            return math.inf
        # With the k largest at the cap c, c = share (k c + the rest).
        for largest in range(len(counts)):
            left = 1 - self.max_share * largest
            if left <= 0:
                break
            cap = self.max_share * float(counts[largest:].sum()) / left
            if counts[largest] <= cap:
                return cap
        return float(counts[-1])  # So few sites that each must have more: all alike.

    def check(self, update: Update) -> None:
        """Raise :class:`Unfit` where an update, whose tensors are as the method's, cannot be used
        by this strategy; by default every one can."""

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Add each site's validation metrics to its line of the round."""
        found: dict[str, dict[str, float]] = {}
        for reply in replies:
            name = self.names[reply.metadata.src_node_id]
            if reply.has_error():
                self.outcome.failed.setdefault(name, reply.error.reason or "no reason given")
                continue
            self.outcome.bytes_up[name] += content_bytes(reply.content)
            if self.headline is None:
                continue
            try:
                metrics = read_validation(reply.content, self.headline)
            except Unfit as fault:
                self.outcome.rejected[name] = str(fault)
                continue
            if (measured := validated(self.headline)) in metrics:
                found[name] = metrics
                reached = {measured: metrics[measured]}
                self.outcome.sites.setdefault(name, {}).update(reached)
        return mean_metrics(found)

    def summary(self) -> None:
        """Nothing to log: ``fedshift explain`` says what a strategy does."""

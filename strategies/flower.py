"""Flower's own strategies, flwr.serverapp.strategy, run under the base of this package.

``strategy=flower strategy.name=Krum`` lets Flower combine the weights of the averaged and broadcast
sub-networks; everything else is as under any strategy here: sites are drawn by name, a non-finite
or misshapen update is rejected, a failing site is left out, running statistics, counters, balanced
and summed sub-networks are averaged by the base, and tensors keep their type.

Every sub-network has an instance of its own, made afresh each round and given what Flower would
have kept in memory (the moments of the adaptive optimisers, the momentum, an adaptive clipping
norm) from the checkpointed state, so that a resumed run goes on to the bit. An instance samples no
site (``fraction_train`` is 0) and sees the accepted updates as replies, in the order of the sites'
names and with their tensors in the model's order, for some of Flower's classes pair them by place.

Flower combines a list: the updates of a round are in memory together, a model a site.

The wrappers for differential privacy clip the change of each sub-network of a site to
``clipping_norm`` and add Gaussian noise of standard deviation noise_multiplier * clipping_norm / n
to the mean of n updates. It is drawn from NumPy's global generator, which is seeded for this and
put back: noise that follows from the run's seed is for simulations and protects nobody.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, make_dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, get_type_hints

import numpy as np

from fedshift import UserError, derive_seed
from fedshift.protocol.answers import Unfit
from fedshift.protocol.flower import (
    ArrayRecord,
    ConfigRecord,
    FlowerStrategy,
    Message,
    MetricRecord,
    RecordDict,
    flower_strategies,
)
from fedshift.protocol.messages import (
    ARRAYS,
    EXAMPLES,
    METRICS,
    Arrays,
    Instruction,
    TensorInfo,
    pack_arrays,
    unpack_arrays,
)
from fedshift.protocol.settings import from_mapping, setting, suggest
from fedshift.strategies.base import Strategy, guards
from fedshift.strategies.base.aggregate import DomainMeans, Update

_WRAPPED = ("FedAvg", "FedProx")
"""What the wrappers may wrap: the noise is measured for a mean, and added after the strategy."""
_WRAPPERS = (
    "DifferentialPrivacyServerSideAdaptiveClipping",
    "DifferentialPrivacyServerSideFixedClipping",
)
NAMES = (
    "Bulyan",
    *_WRAPPERS,
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedMedian",
    "FedProx",
    "FedTrimmedAvg",
    "FedYogi",
    "Krum",
    "MultiKrum",
    "QFedAvg",
)
"""Flower's classes that can be asked for."""

_MODS = "it needs Flower's client mods, which a site does not run; choose the server-side one"
_TREES = "it combines trees, and the methods here train networks"
_REFUSED = {
    "DifferentialPrivacyClientSideAdaptiveClipping": _MODS,
    "DifferentialPrivacyClientSideFixedClipping": _MODS,
    "FedXgbBagging": _TREES,
    "FedXgbCyclic": _TREES,
}

_SAMPLING = "sites are drawn by name; set strategy.fraction and strategy.min_sites"
_RECORDS = "a message's records have the names that sites and coordinator share"
_OBJECT = "it is no number or text"
_FIXED = {
    "fraction_train": _SAMPLING,
    "fraction_evaluate": _SAMPLING,
    "min_train_nodes": _SAMPLING,
    "min_evaluate_nodes": _SAMPLING,
    "min_available_nodes": _SAMPLING,
    "num_sampled_clients": "it is the number of updates that arrived",
    "weighted_by_key": _RECORDS,
    "arrayrecord_key": _RECORDS,
    "configrecord_key": _RECORDS,
    "train_metrics_aggr_fn": _OBJECT,
    "evaluate_metrics_aggr_fn": _OBJECT,
    "selection_rule": _OBJECT,
    "accountant": _OBJECT,
    "strategy": "name the strategy that is wrapped in strategy.wrapped",
    "eta_l": "it is the sites' learning rate, which the method sets",
}
"""Parameters of Flower's constructors that are not settings, and why."""

_RISK = "risk_received"
"""The metric that is the loss of the model a site was sent, which q-FedAvg is about."""
_COMMON = ("fraction", "min_sites", "weighting", "max_share")
_AT_LEAST = {"client_learning_rate": 1e-12, "num_nodes_to_select": 1, "tau": 1e-12}
"""The smallest sensible values; 0 for all others. Flower takes any."""

_UPDATES_NEEDED = {"Bulyan": (4, 3), "Krum": (2, 3), "MultiKrum": (2, 3)}
"""(a, b): with f faulty sites the papers' guarantees need a f + b updates."""


def from_settings(settings: Mapping[str, Any]) -> Flower:
    """Build the adapter for the class of Flower that ``settings["name"]`` names.

    The other settings are the common ones, ``wrapped``, and those of Flower's constructor; None
    leaves one at its default. Raises :class:`UserError` for a class that cannot run here, and for a
    setting that the class does not have, that is not to be set, or that it refuses.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    name = str(given.pop("name", "FedAvg"))
    if name in _REFUSED:
        raise UserError(f"strategy.name={name} cannot run here: {_REFUSED[name]}")
    if name not in NAMES:
        raise UserError(f"strategy.name={name} is no strategy of Flower{suggest(name, NAMES)}")
    common = {key: given.pop(key) for key in _COMMON if key in given}
    classes = [name]
    if name in _WRAPPERS:
        wrapped = str(given.pop("wrapped", "FedAvg"))
        if wrapped not in _WRAPPED:
            raise UserError(
                f"strategy.wrapped={wrapped} cannot be wrapped by {name}, whose noise is measured "
                f"for a mean of the updates; choose from {', '.join(_WRAPPED)}"
            )
        if common.get("weighting") != "uniform":
            raise UserError(
                f"strategy.name={name} measures its noise for sites that count alike; set "
                "strategy.weighting=uniform"
            )
        classes.append(wrapped)
    strategy = from_mapping(Flower, {**common, "name": name}, "strategy")
    return replace(strategy, classes=tuple(classes), options=_checked(classes, given))


def _checked(classes: list[str], given: dict[str, Any]) -> dict[str, Any]:
    """The settings ``given`` for Flower's ``classes``; raises :class:`UserError`."""
    kinds = {key: kind for name in classes for key, kind in _settable(name).items()}
    for key in given:
        if key in _FIXED:
            raise UserError(f"strategy.{key} cannot be set: {_FIXED[key]}")
        if key not in kinds:
            known = [*kinds, *_COMMON]
            raise UserError(
                f"strategy.{key} is not a setting of Flower's {classes[0]}{suggest(key, known)}"
            )
    for name in classes:
        for key, parameter in inspect.signature(_class(name)).parameters.items():
            if parameter.default is parameter.empty and key not in {*_FIXED, *given}:
                raise UserError(f"Flower's {name} has no default for strategy.{key}; set it")
    fields = [(k, kinds[k], setting(None, at_least=_AT_LEAST.get(k, 0))) for k in given]
    checked: Any = from_mapping(make_dataclass("Options", fields), given, "strategy")
    return {key: getattr(checked, key) for key in given}


def _class(name: str) -> type[FlowerStrategy]:
    found: type[FlowerStrategy] = getattr(flower_strategies, name)
    return found


def _settable(name: str) -> dict[str, Any]:
    """The parameters of the constructor that are settings, and their types."""
    hints = get_type_hints(_class(name).__init__)
    return {
        key: hints[key] for key in inspect.signature(_class(name)).parameters if key not in _FIXED
    }


@dataclass(eq=False)
class Flower(Strategy):
    """The weights are combined by a class of Flower's."""

    paper: ClassVar[str] = "Flower's own, by name"
    combines: ClassVar[str] = "combined by Flower's strategy of this name"

    name: str = "FedAvg"
    """The class, one of :data:`NAMES`."""
    classes: tuple[str, ...] = ("FedAvg",)
    """It, and the one that it wraps, if any."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What their constructors are given."""

    def rules(self) -> dict[str, dict[str, Any]]:
        """What Flower's FedProx and QFedAvg ask of the sites."""
        if self.loss_key == _RISK:
            return {"risk": {}}
        mu = self.options.get("proximal_mu", 0)
        return {"proximal": {"mu": mu}} if mu > 0 else {}

    def needed(self) -> int:
        """The fewest updates that the rule's guarantee holds for."""
        per_faulty, beside = _UPDATES_NEEDED.get(self.name, (0, 1))
        return int(per_faulty * self.options.get("num_malicious_nodes", 0) + beside)

    @property
    def loss_key(self) -> str | None:
        """The metric of a site by which q-FedAvg weights it; None for the other classes."""
        return self.options.get("train_loss_key", _RISK) if self.name == "QFedAvg" else None

    def begin(
        self, sites: Mapping[str, int], tensors: Mapping[str, TensorInfo], instruction: Instruction
    ) -> None:
        """Bind to a run; raises :class:`UserError` also when a round has too few sites for the
        rule, or Flower refuses a setting."""
        super().begin(sites, tensors, instruction)
        if self.drawn() < self.needed():
            raise UserError(
                f"Flower's {self.name} needs {self.needed()} sites in a round with "
                f"strategy.num_malicious_nodes={self.options.get('num_malicious_nodes', 0)}, and "
                f"{self.drawn()} train in one; add sites or choose another strategy"
            )
        try:
            self.instance(self.drawn())
        except ValueError as error:
            raise UserError(f"Flower's {self.name} refuses its settings: {error}") from error

    def instance(self, count: int) -> FlowerStrategy:
        """A new object of the class, for ``count`` updates; raises ``ValueError``."""
        built: FlowerStrategy | None = None
        with _quiet():
            for name in reversed(self.classes):
                kind = _class(name)
                options: dict[str, Any] = {
                    key: value for key, value in self.options.items() if key in _settable(name)
                }
                if name in _WRAPPERS:
                    options |= {"strategy": built, "num_sampled_clients": count}
                else:
                    options["fraction_train"] = 0.0
                if name == "QFedAvg":
                    options["train_loss_key"] = self.loss_key
                built = kind(**options)
        assert built is not None
        return built

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Collect the accepted replies, then let Flower combine them."""
        self._round = server_round
        return super().aggregate_train(server_round, replies)

    def gathering(self) -> DomainMeans:
        """The round's accepted updates."""
        return FlowerUpdates(self)

    def check(self, update: Update) -> None:
        """Also refuse what Flower would trip over, and a part of a sub-network, which it cannot
        combine with whole ones."""
        guards.check_complete(update.arrays, update.weights, self.travelling)
        if self.loss_key is not None and not update.metrics.get(self.loss_key, np.nan) >= 0:
            raise Unfit(
                f"reports no {self.loss_key} of at least 0, by which q-FedAvg weights a site"
            )
        if self.name in _WRAPPERS and (unmoved := self._unmoved(update)):
            raise Unfit(f"sent {unmoved} as it was; Flower cannot clip a change of length 0")

    def _unmoved(self, update: Update) -> str | None:
        """A sub-network that the site says it trained and sent back unchanged, if any."""
        for network in update.weights:
            names = self.steered_in(network)
            if names and all(np.array_equal(update.arrays[n], self.current[n]) for n in names):
                return network
        return None

    def steered_in(self, network: str) -> list[str]:
        """The tensors of a sub-network that Flower combines, in the model's order."""
        return [
            name
            for name, info in self.tensors.items()
            if info.network == network and name in self.steered
        ]

    def combined(self, network: str, replies: list[Message]) -> Arrays:
        """What Flower makes of the ``replies`` for a sub-network.

        What the class would remember goes into :attr:`state`. Raises ``ValueError`` with the reason
        when it makes nothing of them."""
        if len(replies) < self.needed():
            raise ValueError(
                f"{len(replies)} updates, {self.needed()} needed by Flower's {self.name}"
            )
        names = self.steered_in(network)
        flower = self.instance(len(replies))
        self._remind(flower, network, names)
        sent = pack_arrays({name: _lined(self.current[name]) for name in names})
        seed = derive_seed(self.instruction.seed, self._round, network, "Flower's noise")
        # What overflows shows in the result.
        with _quiet(), _global_draws(seed), np.errstate(all="ignore"):
            # No grid is asked for nodes, because fraction_train is 0.
            nobody: Any = None
            flower.configure_train(self._round, sent, ConfigRecord(), nobody)
            record, _ = flower.aggregate_train(self._round, replies)
        assert record is not None  # It would be without replies, and they were counted.
        found = {
            name: array.reshape(self.tensors[name].shape).astype(self.tensors[name].dtype)
            for name, array in unpack_arrays(record).items()
        }
        lasting = self._lasting(flower, network, names)
        if not all(np.isfinite(array).all() for array in (*found.values(), *lasting.values())):
            raise ValueError(f"Flower's {self.name} made it, or what it remembers, non-finite")
        self.state |= lasting
        return found

    def _lasting(self, flower: Any, network: str, names: list[str]) -> Arrays:
        """What an object of the class would keep in memory until the next round."""
        kept: Arrays = {}
        for attribute in ("m_t", "v_t"):
            for name, array in (getattr(flower, attribute, None) or {}).items():
                kept[f"{attribute}/{name}"] = np.asarray(array)
        if getattr(flower, "momentum_vector", None) is not None:
            for name, array in zip(names, flower.momentum_vector, strict=True):
                kept[f"momentum_vector/{name}"] = np.asarray(array)
        if self.name in _WRAPPERS:
            kept[f"clipping_norm/{network}"] = np.array(flower.clipping_norm)
        return kept

    def _remind(self, flower: Any, network: str, names: list[str]) -> None:
        """Give it back what :meth:`_lasting` kept."""
        for attribute in ("m_t", "v_t", "momentum_vector"):
            held = {n: self.state[key] for n in names if (key := f"{attribute}/{n}") in self.state}
            if held:
                value = list(held.values()) if attribute == "momentum_vector" else held
                setattr(flower, attribute, value)
        if (key := f"clipping_norm/{network}") in self.state:
            flower.clipping_norm = float(self.state[key])


class FlowerUpdates(DomainMeans):
    """The updates of a round as Flower's messages; what Flower is not to see are running means."""

    def __init__(self, strategy: Flower) -> None:
        super().__init__(strategy.tensors)
        self._strategy = strategy
        self._replies: dict[str, list[Message]] = {}

    def add(self, update: Update) -> None:
        """Keep what a site sent."""
        strategy = self._strategy
        for network, weight in update.weights.items():
            names = strategy.steered_in(network)
            if not names:
                continue
            metrics: dict[str, Any] = {EXAMPLES: weight}
            if strategy.loss_key is not None:
                metrics[strategy.loss_key] = update.metrics[strategy.loss_key]
            arrays = pack_arrays({name: _lined(update.arrays[name]) for name in names})
            content = RecordDict({ARRAYS: arrays, METRICS: MetricRecord(metrics)})
            node = strategy.sites[update.site]
            asked = Message(RecordDict(), dst_node_id=node, message_type="train")
            self._replies.setdefault(network, []).append(Message(content, reply_to=asked))
        others = {n: update.arrays[n] for n in update.arrays if n not in strategy.steered}
        super().add(replace(update, arrays=others))

    @cached_property
    def _combined(self) -> tuple[Arrays, dict[str, str]]:
        """What Flower made of the updates, and of which sub-networks it made nothing, and why."""
        found: Arrays = {}
        why: dict[str, str] = {}
        for network in sorted(self._replies):
            try:
                found |= self._strategy.combined(network, self._replies.pop(network))
            except (ArithmeticError, ValueError) as error:
                why[network] = str(error)
        return found, why

    def missing(self) -> dict[str, str]:
        """Also the sub-networks of which Flower made nothing."""
        return dict(sorted((super().missing() | self._combined[1]).items()))

    def result(self) -> Iterator[tuple[str, np.ndarray]]:
        """Each tensor that can be combined, and its combination."""
        yield from super().result()
        yield from self._combined[0].items()


def _lined(array: np.ndarray) -> np.ndarray:
    """``array`` with one dimension at least: Flower changes arrays in place, and an operation on
    a 0-d array is a number instead."""
    return array.reshape(array.shape or 1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what Flower's classes log: a dozen lines a round, on standard error."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _global_draws(seed: int) -> Iterator[None]:
    """Lend NumPy's global generator, from which Flower draws, a state made of ``seed``."""
    held = np.random.get_state()  # noqa: NPY002
    np.random.set_state(dict(np.random.MT19937(seed).state))  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(held)  # noqa: NPY002

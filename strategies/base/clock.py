"""Simulated time: which sites can be asked in a round, and how long each of them takes.

A site that is sent D bytes, trains S steps and answers with U bytes takes

    8 D / (10^6 down_mbps) + S / steps_per_s + 8 U / (10^6 up_mbps)    seconds,

and can be asked in a round with probability ``availability``. Each of the four is a number or a
distribution, drawn once a site or anew in each round. The draws follow from the run's seed, the
site and the round alone, so that every strategy meets the same sites in the same rounds.

Training and transfer count; scoring a model, the coordinator's own work and waiting in its network
do not.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

from fedshift import UserError, derive_seed
from fedshift.protocol.messages import POOLED
from fedshift.protocol.settings import from_mapping, setting, suggest

_BITS_PER_BYTE = 8
_PER_MEGA = 1e6


@dataclass(frozen=True)
class Uniform:
    """Any number from ``low`` to ``high`` alike; a constant is one where both are equal."""

    low: float
    high: float
    per: Literal["site", "round"] = "site"

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the greatest value."""
        return self.low, self.high

    def draw(self, rng: np.random.Generator) -> float:
        """One value."""
        return float(rng.uniform(self.low, self.high))


@dataclass(frozen=True)
class Lognormal:
    """``median`` times exp(``sigma`` z), z standard normal: sigma 0.7 is a factor of 2 up or
    down."""

    median: float
    sigma: float = setting(0.0, at_least=0)
    per: Literal["site", "round"] = "site"

    @property
    def bounds(self) -> tuple[float, float]:
        """Values near these do occur, without an end to either side but 0."""
        return min(self.median, 0.0), math.inf

    def draw(self, rng: np.random.Generator) -> float:
        """One value."""
        return self.median * math.exp(self.sigma * rng.standard_normal())


Quantity = Uniform | Lognormal

_DISTRIBUTIONS: dict[str, type[Quantity]] = {"uniform": Uniform, "lognormal": Lognormal}


@dataclass(frozen=True)
class Pace:
    """How fast a site trains and exchanges, and how often it can be asked."""

    steps_per_s: Quantity
    down_mbps: Quantity
    up_mbps: Quantity
    availability: Quantity


_PACES = tuple(field.name for field in fields(Pace))


@dataclass(frozen=True)
class Timing:
    """When a site was sent the model, in simulated seconds since the start of the run, and how
    long its parts took."""

    start_s: float
    download_s: float
    training_s: float
    upload_s: float

    @property
    def seconds(self) -> float:
        """From being sent the model to its answer."""
        return self.download_s + self.training_s + self.upload_s

    @property
    def end_s(self) -> float:
        """When its answer is there."""
        return self.start_s + self.seconds


@dataclass(frozen=True)
class Clock:
    """The pace of every site. A round waits ``deadline_s`` for a site at most (None: as long as it
    takes), and ``wait_s`` when no site can be asked."""

    seed: int
    pace: Pace
    sites: Mapping[str, Pace]
    deadline_s: float | None = None
    wait_s: float = 60.0

    @classmethod
    def from_config(cls, node: Mapping[str, Any], seed: int) -> Clock | None:
        """Read the config node ``clock``; None for ``clock=none``.

        Raises :class:`UserError` that names the key which is wrong.
        """
        if node["name"] == "none":
            return None
        waits = {key: node[key] for key in ("deadline_s", "wait_s")}
        checked = from_mapping(_Waits, waits, "clock")
        usual = {name: _quantity(node[name], f"clock.{name}", name) for name in _PACES}
        sites = {}
        for site, changes in node["sites"].items():
            key = f"clock.sites.{site}"
            if not isinstance(changes, Mapping):
                raise UserError(f"{key} must be a group of settings, not {changes!r}")
            for name in changes:
                if name not in _PACES:
                    raise UserError(f"{key}.{name} is not a setting{suggest(name, _PACES)}")
            own = {name: _quantity(changes[name], f"{key}.{name}", name) for name in changes}
            sites[str(site)] = Pace(**{**usual, **own})
        return cls(seed, Pace(**usual), sites, checked.deadline_s, checked.wait_s)

    def check(self, sites: Collection[str]) -> None:
        """Raise :class:`UserError` for a pace of a site that is not among ``sites``."""
        for name in self.sites:
            if name not in sites and name != POOLED:
                raise UserError(f"clock.sites.{name} is no site of the run{suggest(name, sites)}")

    def available(self, site: str, round: int) -> bool:
        """Whether ``site`` can be asked in ``round``."""
        seed = derive_seed(self.seed, site, round, "clock: asked")
        return np.random.default_rng(seed).random() < self._value("availability", site, round)

    def timing(
        self, site: str, round: int, start_s: float, *, down: int, steps: float, up: int
    ) -> Timing:
        """How long ``site`` takes from ``start_s`` for ``down`` bytes to it, ``steps`` steps of
        training, and ``up`` bytes back."""

        def transfer(size: int, rate: str) -> float:
            if not size:
                return 0.0
            return _BITS_PER_BYTE * size / (_PER_MEGA * self._value(rate, site, round))

        return Timing(
            start_s,
            transfer(down, "down_mbps"),
            steps / self._value("steps_per_s", site, round),
            transfer(up, "up_mbps"),
        )

    def late(self, timing: Timing) -> bool:
        """Whether a site that takes as long is not waited for."""
        return self.deadline_s is not None and timing.seconds > self.deadline_s

    def _value(self, name: str, site: str, round: int) -> float:
        quantity: Quantity = getattr(self.sites.get(site, self.pace), name)
        number = round if quantity.per == "round" else 0
        seed = derive_seed(self.seed, site, number, f"clock: {name}")
        return quantity.draw(np.random.default_rng(seed))


@dataclass(frozen=True)
class _Waits:
    deadline_s: float | None = setting(None, at_least=0)
    wait_s: float = setting(60.0, at_least=0)


def _quantity(value: Any, key: str, name: str) -> Quantity:
    """A number or distribution of the config, at ``key``, for the ``name`` of a pace."""
    if isinstance(value, Mapping):
        given = {entry: found for entry, found in value.items() if entry != "dist"}
        kind = _DISTRIBUTIONS.get(value.get("dist", ""))
        if kind is None:
            raise UserError(
                f"{key}.dist={value.get('dist')} is not known; choose from "
                f"{', '.join(sorted(_DISTRIBUTIONS))}"
            )
        lacking = [field for field in ("low", "high", "median") if _lacks(kind, given, field)]
        if lacking:
            raise UserError(f"{key} lacks {lacking[0]}, which a {value['dist']} distribution needs")
        quantity: Quantity = from_mapping(kind, given, key)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        quantity = Uniform(float(value), float(value))
    else:
        raise UserError(
            f"{key} must be a number or a distribution such as "
            f"{{dist: lognormal, median: 2, sigma: 0.5}}, not {value!r}"
        )
    low, high = quantity.bounds
    if name == "availability":
        if not 0 <= low <= high <= 1:
            raise UserError(f"{key} is a probability: a number, or uniform, from 0 to 1")
    elif isinstance(quantity, Lognormal):
        if quantity.median <= 0:
            raise UserError(f"{key}.median must be above 0, not {quantity.median:g}")
    elif not 0 < low <= high < math.inf:
        raise UserError(f"{key} must be above 0, from low to high, not {low:g} to {high:g}")
    return quantity


def _lacks(kind: type[Quantity], given: Mapping[str, Any], field: str) -> bool:
    return field in {known.name for known in fields(kind)} and field not in given

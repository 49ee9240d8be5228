"""The parts of a composed config that the command line itself acts on, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedshift import UserError
from fedshift.cli.config import Config

MODELS = ("local", "personal", "global", "pooled")
BASELINES = ("local", "pooled")
PROTOCOLS = ("together", "leave_one_site_out")


@dataclass(frozen=True)
class RunSettings:
    """The top-level keys of a run."""

    out: Path
    resume: bool
    seed: int
    rounds: int
    local_steps: int
    protocol: str
    baselines: tuple[str, ...]
    validate_every: int
    evaluated: tuple[str, ...]
    deadline_s: float | None

    @classmethod
    def from_config(cls, config: Config) -> RunSettings:
        """Check the top-level keys; raises :class:`UserError` naming the key."""
        strategy = config["strategy"]["name"]
        name = f"{config['federation']['name']}_{config['method']['name']}_{strategy}"
        baselines = _subset(config, "baselines", BASELINES)
        return cls(
            out=Path(str(config["out"] or f"runs/{name}_seed{config['seed']}")).expanduser(),
            resume=_boolean(config, "resume"),
            seed=_whole(config, "seed", at_least=0),
            rounds=_whole(config, "rounds", at_least=1),
            local_steps=_whole(config, "local_steps", at_least=1),
            protocol=_subset({"protocol": [config["protocol"]]}, "protocol", PROTOCOLS)[0],
            baselines=tuple(baseline for baseline in baselines if baseline != strategy),
            validate_every=_whole(config, "validate_every", at_least=0),
            evaluated=_subset(config, "evaluated", MODELS),
            deadline_s=_positive_or_none(config, "deadline_s"),
        )


@dataclass(frozen=True)
class EngineSettings:
    """The config node ``engine``; ``workers`` None means as many as fit."""

    name: str
    workers: int | None
    devices: str
    threads: int
    amp: bool

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> EngineSettings:
        """Check the node; raises :class:`UserError` naming the key."""
        node = {f"engine.{key}": value for key, value in config.items()}
        workers = node["engine.workers"]
        return cls(
            name=node["engine.name"],
            workers=None if workers == "auto" else _whole(node, "engine.workers", at_least=1),
            devices=str(node.get("engine.devices", "auto")),
            threads=_whole(node, "engine.threads", at_least=1),
            amp=_boolean(node, "engine.amp"),
        )


def _whole(node: Mapping[str, Any], key: str, *, at_least: int) -> int:
    value = node[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise UserError(f"{key} is {value!r}; use a whole number of at least {at_least}")
    return value


def _boolean(node: Mapping[str, Any], key: str) -> bool:
    value = node[key]
    if not isinstance(value, bool):
        raise UserError(f"{key} is {value!r}; use true or false")
    return value


def _positive_or_none(node: Mapping[str, Any], key: str) -> float | None:
    value = node[key]
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise UserError(f"{key} is {value!r}; use a number of seconds above 0, or null to wait")
    return float(value)


def _subset(node: Mapping[str, Any], key: str, names: Sequence[str]) -> tuple[str, ...]:
    values = node[key]
    if not isinstance(values, list):
        raise UserError(f"{key} is {values!r}; use a list of some of {', '.join(names)}")
    for value in values:
        if value not in names:
            raise UserError(f"{key} holds {value!r}; use some of {', '.join(names)}")
    return tuple(values)

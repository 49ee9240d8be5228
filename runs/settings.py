"""The parts of a composed config that a run itself acts on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fedshift import UserError
from fedshift.protocol.messages import LARGEST_NUMBER, MOST_ROUNDS, MOST_STEPS
from fedshift.protocol.settings import from_mapping, setting
from fedshift.runs.config import Config

_GROUPS = (
    "federation",
    "data",
    "task",
    "method",
    "augmentation",
    "strategy",
    "clock",
    "policy",
    "engine",
    "out",
)


@dataclass(frozen=True)
class ShiftSettings:
    """The config node ``shift``: between which pairs of sites it is measured."""

    pairs: Literal["auto", "all", "nearest", "sampled"] = "auto"


@dataclass(frozen=True)
class RunSettings:
    """The top-level keys of a run; configs/config.yaml says what they mean."""

    resume: Literal["force"] | bool = False
    seed: int = setting(0, at_least=0, at_most=LARGEST_NUMBER)
    rounds: int = setting(10, at_least=1, at_most=MOST_ROUNDS)
    local_steps: int = setting(30, at_least=1, at_most=MOST_STEPS)
    budget: Literal["steps", "bytes", "time"] = "steps"
    budget_limit: float | None = setting(None, at_least=0)
    protocol: Literal[
        "together", "leave_one_site_out", "leave_one_vendor_out", "unlabel_one_site"
    ] = "together"
    left_out: tuple[str, ...] = ()
    """The sites that a fold of the leave-one-out protocols does without; never set by hand."""
    baselines: tuple[Literal["local", "pooled"], ...] = ("local", "pooled")
    validate_every: int = setting(1, at_least=0)
    evaluated: tuple[Literal["local", "personal", "global", "pooled"], ...] = (
        "local",
        "personal",
        "global",
        "pooled",
    )
    shift: ShiftSettings = ShiftSettings()
    checkpoints_kept: int | None = setting(None, at_least=1)
    tracking: tuple[Literal["tensorboard", "mlflow"], ...] = ()
    deadline_s: float | None = setting(None, at_least=0)

    @classmethod
    def from_config(cls, config: Config) -> RunSettings:
        """Check the keys; raises :class:`fedshift.UserError` naming the one that is wrong."""
        return from_mapping(cls, {k: v for k, v in config.items() if k not in _GROUPS})


def as_folder(out: Any) -> Path:
    """The folder that ``out`` names; raises :class:`UserError` for a number, a list and the like,
    which would name a folder that nobody meant."""
    if not isinstance(out, str) or not out.strip():
        raise UserError(
            f"out must be the name of a folder, not {out!r}; write out=./NAME for a name that "
            "reads as something else"
        )
    return Path(out).expanduser()


def output_folder(config: Config) -> Path:
    """The run's folder: ``out``, or a name made of what is run.

    Raises :class:`UserError` when ``out`` is no text.
    """
    if config["out"] is not None:
        return as_folder(config["out"])
    parts = [config[group]["name"] for group in ("federation", "method", "strategy")]
    return Path("runs") / f"{'_'.join(parts)}_seed{config['seed']}"


@dataclass(frozen=True)
class EngineSettings:
    """The config node ``engine``."""

    name: Literal["inline", "ray"] = "inline"
    workers: Literal["auto"] | int = setting("auto", at_least=1)
    devices: str = "auto"
    threads: int = setting(1, at_least=1)
    amp: bool = True
    address: str | None = None
    """Of a Ray cluster that is there already."""

    @classmethod
    def from_config(cls, config: Config) -> EngineSettings:
        """Check the node; raises :class:`fedshift.UserError` naming the key."""
        return from_mapping(cls, config["engine"], "engine")

    @property
    def most_workers(self) -> int | None:
        """The number of workers asked for; None for as many as are of use."""
        return None if isinstance(self.workers, str) else self.workers

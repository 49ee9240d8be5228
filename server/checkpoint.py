"""Exact resume: what a coordinator must keep to repeat a run from its last finished round.

Every random draw is derived from (seed, site, round, purpose), so no generator's state is kept: a
round's checkpoint is the model, what the sites published, the strategy's own state, and the
identity of the run. Sites keep their own state. The ``.json`` is written last: a checkpoint without
it never counts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedshift import UserError
from fedshift.protocol.messages import Arrays
from fedshift.protocol.storage import read_tensors, write_atomic, write_tensors

_NAME = re.compile(r"round_(\d+)\.json$")
_BANK = "bank::"
_STATE = "state::"

EXTENDS = ("rounds", "budget_limit")
"""What may be raised when a run goes on; see ``runs/folder.py``."""
_ELSEWHERE = ("engine", "out", "resume", "tracking")


def deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of ``config`` that decides the results: not where, nor on how many workers.

    The number of torch threads and mixed precision are part of the arithmetic. What was planned
    counts, not why.
    """
    kept = {key: value for key, value in config.items() if key not in _ELSEWHERE}
    kept["data"] = {k: v for k, v in config["data"].items() if k not in ("cache", "planned")}
    kept["engine"] = {key: config["engine"][key] for key in ("threads", "amp")}
    return kept


def fingerprint(config: Mapping[str, Any]) -> str:
    """A hash of everything in ``config`` that decides the results."""
    text = json.dumps(deciding(config), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def lineage(config: Mapping[str, Any]) -> str:
    """A hash of what a run and all that only extend it have in common: a checkpoint's identity."""
    return fingerprint({key: value for key, value in config.items() if key not in EXTENDS})


@dataclass(frozen=True)
class Checkpoint:
    """What the coordinator holds after a round: the model, the bank, the strategy's state."""

    model: Arrays
    bank: dict[str, Arrays]
    state: Arrays


def save(folder: Path, round: int, held: Checkpoint, identity: str, newest: int | None) -> None:
    """Write the checkpoint of ``round``, atomically, and drop all but the ``newest`` ones (None:
    keep all); raises :class:`UserError` on a full disk."""
    tensors = dict(held.model)
    for site, statistics in held.bank.items():
        for name, array in statistics.items():
            tensors[f"{_BANK}{site}::{name}"] = array
    tensors |= {f"{_STATE}{name}": array for name, array in held.state.items()}
    stem = folder / f"round_{round:04d}"
    write_tensors(stem.with_suffix(".safetensors"), tensors)
    adopt(folder, round, identity)
    if newest is not None:
        for number in _rounds(folder):
            if number <= round - newest:
                # Without its .json a checkpoint does not count: that goes first.
                for suffix in (".json", ".safetensors"):
                    (folder / f"round_{number:04d}{suffix}").unlink(missing_ok=True)


def last_round(folder: Path) -> int:
    """The newest round with a whole checkpoint; 0 when there is none."""
    return max(_rounds(folder), default=0)


def _rounds(folder: Path) -> list[int]:
    """The rounds with a whole checkpoint."""
    if not folder.is_dir():
        return []
    matches = (_NAME.match(path.name) for path in folder.iterdir())
    return [int(match.group(1)) for match in matches if match]


def adopt(folder: Path, round: int, identity: str) -> None:
    """Give a whole checkpoint another identity: the user says that it may go on as that run."""
    described = {"round": round, "run": identity}
    write_atomic(folder / f"round_{round:04d}.json", json.dumps(described, sort_keys=True) + "\n")


def load(folder: Path, round: int, identity: str) -> Checkpoint:
    """What the coordinator held after ``round``.

    Raises :class:`UserError` when the checkpoint is damaged or belongs to another config.
    """
    stem = folder / f"round_{round:04d}"
    try:
        found = json.loads(stem.with_suffix(".json").read_text())["run"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{stem.with_suffix('.json')} cannot be read ({error}); remove it to resume from the "
            "round before"
        ) from error
    if found != identity:
        raise UserError(
            f"{stem.with_suffix('.json')} belongs to a run with another config; choose another "
            "out=DIR or repeat the config of that run"
        )
    model: Arrays = {}
    bank: dict[str, Arrays] = {}
    state: Arrays = {}
    for name, array in read_tensors(stem.with_suffix(".safetensors")).items():
        if name.startswith(_BANK):
            site, statistic = name.removeprefix(_BANK).split("::", maxsplit=1)
            bank.setdefault(site, {})[statistic] = array
        elif name.startswith(_STATE):
            state[name.removeprefix(_STATE)] = array
        else:
            model[name] = array
    return Checkpoint(model, bank, state)

"""Sites of a small federation, asked by hand as a coordinator would."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fedshift.client.model import initial_arrays
from fedshift.client.policy import Policy
from fedshift.client.simulation import LocalSites
from fedshift.client.worker import SiteWorker
from fedshift.protocol.flower import ArrayRecord, Message, MetricRecord
from fedshift.protocol.messages import (
    ARRAYS,
    METRICS,
    Action,
    Arrays,
    Instruction,
    pack_arrays,
    pack_bank,
    request,
    unpack_arrays,
)
from fedshift.runs.config import Config, load
from fedshift.sites import DataSettings, load_federation

METHOD = {"name": "supervised", "width": 4, "depth": 3}


@lru_cache
def _config(overrides: tuple[str, ...]) -> Config:
    """Composing takes longer than most of what is asked."""
    return load(list(overrides))


def local_federation(
    tiny: tuple[str, ...], folder: Path, policy: Policy | None = None, **data: Any
) -> LocalSites:
    """The sites of the small federation, with state and ledgers under ``folder``."""
    config = _config(tiny)
    settings = replace(DataSettings.from_config(config["data"]), **data)
    return LocalSites(
        federation=load_federation(config["federation"], settings, 0),
        data=settings,
        policy=policy or Policy(),
        folder=folder,
        seed=0,
    )


def instruction(sites: LocalSites, action: Action, **changes: Any) -> Instruction:
    """One to train the small supervised network, with ``changes``."""
    task = {"name": "segmentation", "parts": list(sites.federation.parts)}
    return Instruction(action=action, seed=0, method=METHOD, task=task, steps=1).but(**changes)


def initial(sites: LocalSites) -> Arrays:
    """The weights that its training starts from."""
    asked = instruction(sites, Action.INITIAL)
    return initial_arrays(asked.method, asked.task, 0)


def ask(
    worker: SiteWorker,
    asked: Instruction,
    arrays: Mapping[str, np.ndarray] | None = None,
    statistics: Mapping[str, np.ndarray] | None = None,
    bank: Mapping[str, Arrays] | None = None,
) -> Message:
    """What ``worker`` answers."""
    packed = None if arrays is None else pack_arrays(arrays)
    held = None if bank is None else pack_bank(bank)
    content = request(asked, packed, bank=held, statistics=statistics)
    return worker.handle(Message(content, dst_node_id=5, message_type=asked.action.message_type))


def ledger(worker: SiteWorker) -> list[dict[str, Any]]:
    """The lines of its ledger."""
    path = worker.folder / "egress.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def reason(message: Message) -> str:
    """Why a site did not answer."""
    assert message.has_error()
    return message.error.reason or ""


def arrays_of(message: Message, key: str = ARRAYS) -> Arrays:
    """The arrays of an answer's record."""
    record = message.content[key]
    assert isinstance(record, ArrayRecord)
    return unpack_arrays(record)


def metrics_of(message: Message) -> dict[str, Any]:
    """The metrics of an answer."""
    record = message.content[METRICS]
    assert isinstance(record, MetricRecord)
    return dict(record)


def entries_of(message: Message) -> list[tuple[str, list[int], int]]:
    """What a ledger must list of a message: each record's name, shape and bytes, counted anew."""
    if message.has_error():
        told = (message.error.reason or "").encode(errors="surrogatepass")
        return [("error/reason", [], len(b"reason") + len(told))]
    found = []
    value: Any
    for key, record in message.content.items():
        for name, value in record.items():
            if isinstance(record, ArrayRecord):
                shape, size = list(value.shape), len(value.data)
            elif isinstance(value, list):
                shape, size = [len(value)], 8 * len(value)
            else:
                shape, size = [], len(value.encode()) if isinstance(value, str) else 8
            found.append((f"{key}/{name}", shape, size + len(name.encode())))
    return found

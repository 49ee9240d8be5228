"""What the checks of messages cost, at the coordinator and at the sites.

Run with ``python benchmarks/gate.py [TURNS]`` (3). A federation of 8 cardiac phantom sites trains
the default segmentation network for 2 rounds of FedAvg, 15 steps a site and round, validated after
each, in one process; the sites have the deployed policy, so that questions are counted, too. A
share is CPU time in the gate over CPU time of the rounds, the median of the turns.

At the coordinator the gate is all that is done with an answer before it is used: reading what an
update, its statistics and a validation say and looking at their numbers, and at those of the model
that is made of them. At a site it is all that is done with a request before it is followed, and
with an answer before it leaves, but for the ledger, which is a line of its own.

Passes are bytes whose numbers the gate goes through, over the bytes of arrays that came: of the
updates at the coordinator, of the requests at the sites (twice where questions are counted: a
request is told from others by its hash).
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from common import Simulation, open_all, print_table, simulation, verdict

from fedshift.client import ledger, policy, questions, worker
from fedshift.protocol import answers
from fedshift.protocol.flower import ArrayRecord, RecordDict
from fedshift.protocol.messages import view_array
from fedshift.server.engines.inline import InlineGrid
from fedshift.server.federation import meet
from fedshift.server.progress import Silent
from fedshift.server.rounds import train
from fedshift.server.training import prepare
from fedshift.strategies import base
from fedshift.strategies.base import guards
from fedshift.strategies.base.replies import arrays_of

SITES = 8
OPTIONS = (
    "rounds=2",
    "local_steps=15",
    "policy=deployed",
    f"policy.sites={SITES}",
    "policy.min_subjects=1",
)
COORDINATOR = (
    (base.Strategy, "_read"),
    (base.Strategy, "check"),
    (base.Strategy, "_publish"),
    (guards, "check_result"),
    (base, "read_validation"),
)
SITE = (
    (worker, "_instruction"),
    (worker, "_check_arrays"),
    (worker.SiteWorker, "_check_asked"),
    (worker.SiteWorker, "_with_own"),
    (worker, "size_of"),
    (worker, "largest_of"),
    (policy.Policy, "check"),
    (policy.Policy, "check_release"),
    (policy.Policy, "check_size"),
)
LEDGER = ((ledger.Ledger, "record"),)

Spent = defaultdict[str, float]
"""CPU seconds and bytes, by what they were spent on."""


@contextmanager
def watched(spent: Spent) -> Iterator[None]:
    """Within it, the gate's CPU time and the bytes that it goes through are added to ``spent``."""
    with mock.patch.multiple(answers, extent=looking(answers.extent, spent)):
        patches = [
            mock.patch.object(place, name, timed(getattr(place, name), side, spent))
            for side, members in (("coordinator", COORDINATOR), ("site", SITE), ("ledger", LEDGER))
            for place, name in members
        ]
        patches += [
            mock.patch.object(worker, "view_array", viewing(spent)),
            mock.patch.object(questions, "_digest", hashing(questions._digest, spent)),
            mock.patch(f"{base.__name__}.arrays_of", counting(arrays_of, spent)),
        ]
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            for patch in reversed(patches):
                patch.stop()


def timed(call: Callable[..., Any], side: str, spent: Spent) -> Callable[..., Any]:
    """``call``, whose CPU time counts to ``side``."""

    def timing(*given: Any, **named: Any) -> Any:
        start = time.process_time()
        try:
            return call(*given, **named)
        finally:
            spent[side] += time.process_time() - start

    return timing


def looking(extent: Callable[..., Any], spent: Spent) -> Callable[..., Any]:
    """The look at an array's numbers."""

    def look(array: np.ndarray, most: float) -> Any:
        spent["update bytes looked at"] += array.nbytes
        return extent(array, most)

    return look


def counting(call: Callable[..., Any], spent: Spent) -> Callable[..., Any]:
    """The arrays of an answer."""

    def count(content: RecordDict, key: str) -> Any:
        record = content.get(key)
        if isinstance(record, ArrayRecord):
            spent["update bytes"] += sum(len(array.data) for array in record.values())
        return call(content, key)

    return count


def viewing(spent: Spent) -> Callable[..., Any]:
    """An array of a request, whose numbers are looked at."""

    def view(array: Any) -> np.ndarray:
        found = view_array(array)
        spent["request bytes"] += found.nbytes
        spent["request bytes looked at"] += found.nbytes
        return found

    return view


def hashing(digest: Callable[..., str], spent: Spent) -> Callable[..., str]:
    """A request that is told from others."""

    def hashed(content: RecordDict) -> str:
        for record in content.values():
            if isinstance(record, ArrayRecord):
                spent["request bytes looked at"] += sum(len(a.data) for a in record.values())
        return digest(content)

    return hashed


def measured(run: Simulation) -> Spent:
    """What the rounds of a run spent."""
    spent: Spent = defaultdict(float)
    with InlineGrid(run.sites, ["cpu"], threads=1) as grid:
        training = prepare(meet(grid, run.plan), run.plan)
        with watched(spent):
            start = time.process_time()
            train(training, run.plan, Silent())
            spent["rounds"] = time.process_time() - start
    assert not training.arms[0].strategy.outcome.rejected
    return spent


def main(turns: int) -> int:
    """Print shares and passes; return 1 when a target is missed."""
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        open_all(simulation(Path(folder) / "none", cache, SITES).sites)
        found = [
            measured(simulation(Path(folder) / str(turn), cache, SITES, *OPTIONS))
            for turn in range(turns)
        ]

    def share(above: str, below: str) -> float:
        return statistics.median(spent[above] / spent[below] for spent in found)

    seconds = {side: statistics.median(spent[side] for spent in found) for side in found[0]}
    print_table(
        ["", "CPU s", "of the rounds"],
        [
            (side, f"{seconds[side]:.3f}", f"{100 * share(side, 'rounds'):.2f} %")
            for side in ("coordinator", "site", "ledger", "rounds")
        ],
    )
    print(f"\npasses over a request: {share('request bytes looked at', 'request bytes'):.2f}")
    met = [
        verdict("coordinator's gate", 100 * share("coordinator", "rounds"), 2.0, " %"),
        verdict("sites' gate, all together", 100 * share("site", "rounds"), 2.0, " %"),
        verdict("passes over an update", share("update bytes looked at", "update bytes"), 1.0, ""),
    ]
    return int(not all(met))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if sys.argv[1:] else 3))

"""FedBuff: Nguyen et al., Federated Learning with Buffered Asynchronous Aggregation, AISTATS 2022,
Algorithm 1, with the staleness weights of its experiments.

Nobody waits for a round: a site trains from the model that is current when it begins, and the
coordinator steps as soon as K updates are in its buffer. With w_v the version that site i began
from, y_i what it trained it to, and tau_i the number of steps taken meanwhile:

    D_i = w_v - y_i        s(tau) = 1 / sqrt(1 + tau)
    w_{t+1} = w_t - lr (1 / K) sum_i s(tau_i) D_i        over the K updates in the buffer

A round here is one such step. The simulated clock tells which updates arrive next; only their sites
are asked, each with the version it began from, and the round ends when the last of them arrives.
With K = all sites, of equal pace and counted alike, it is FedAvg, to the bit.

What differs, and what the paper leaves open:

- A site whose update is in the buffer begins again once the coordinator has stepped; the paper may
  draw it again before, when it would train the same version a second time. So a step combines K
  different sites, and a fast site counts once in it.
- The paper draws a site for every one that has finished. Here as many as ``fraction`` says train at
  a time, by default all; the idle ones are drawn alike.
- ``weighting=examples`` weights s(tau_i) D_i by n_i / sum n. The paper has no such weights.
- A failed or rejected update leaves the mean to the others of its buffer.
- The paper's analysis bounds tau. A site that would exceed ``most_stale`` is given up and begins
  again: the coordinator keeps the versions that are still being trained, ``most_stale`` models at
  most, and they are part of the checkpoint.
- Running statistics are averaged as FedAvg does, over the sites of the buffer.
- Only the weights are old: a method's phases, and what the sites have published, are those of the
  round in which the update arrives.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from fedshift import UserError
from fedshift.protocol.flower import ArrayRecord, ConfigRecord, Grid, Message
from fedshift.protocol.messages import (
    Action,
    Arrays,
    Instruction,
    TensorInfo,
    content_bytes,
    pack_arrays,
)
from fedshift.protocol.settings import setting
from fedshift.strategies.base import Strategy
from fedshift.strategies.base.aggregate import Unpacked, Update
from fedshift.strategies.base.clock import Timing
from fedshift.strategies.base.replies import RoundOutcome
from fedshift.strategies.base.scaled import Scaled

_STEPS = "steps"
_JOB = "job/"
_VERSION = "version/"


@dataclass(frozen=True)
class Job:
    """A site's training on the way: from which version, and when."""

    version: int
    timing: Timing


@dataclass(eq=False)
class FedBuff(Strategy):
    """Steps on the mean change of the first few sites to answer, the stale ones counting less."""

    paper: ClassVar[str] = "Nguyen et al. 2022"
    combines: ClassVar[str] = "averaged over the next updates to arrive, stale ones less"
    clocked: ClassVar[bool] = True

    weighting: Literal["examples", "uniform"] = "uniform"
    """All updates of a buffer alike, as in the paper, or by their labelled training slices."""
    buffer: int = setting(2, at_least=1)
    """K: the updates that make a step."""
    lr: float = setting(1.0, at_least=0)
    """The coordinator's learning rate."""
    most_stale: int = setting(10, at_least=1)
    """The greatest tau: an update that would be older is not waited for."""

    def begin(
        self, sites: Mapping[str, int], tensors: Mapping[str, TensorInfo], instruction: Instruction
    ) -> None:
        """Bind to a run; raises :class:`UserError` also when the buffer cannot be filled, or the
        method wants all its domains in every round."""
        super().begin(sites, tensors, instruction)
        if self.buffer > self.drawn():
            raise UserError(
                f"strategy.buffer is {self.buffer} and {self.drawn()} sites train at a time; lower "
                "it or raise strategy.fraction"
            )
        if any(info.domains for info in tensors.values()):
            raise UserError(
                f"strategy=fedbuff takes the updates of a few sites at a time, and "
                f"method={instruction.method['name']} needs all its domains in every round; choose "
                "another strategy"
            )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let idle sites begin with ``arrays``; one message a site whose update arrives next."""
        self.outcome = RoundOutcome()
        self._sent = arrays
        self._steps = int(self.state.get(_STEPS, 0))
        jobs = self._running()
        jobs |= self._begun(server_round, [name for name in self.sites if name not in jobs])
        order = sorted(jobs, key=lambda name: (jobs[name].timing.end_s, name))
        self._next = {name: jobs[name] for name in order[: self.buffer]}
        self.outcome.timings = {name: job.timing for name, job in self._next.items()}
        self._began: dict[int, Unpacked] = {}
        messages: list[Message] = []
        for version in sorted({job.version for job in self._next.values()}):
            names = sorted(name for name, job in self._next.items() if job.version == version)
            record = arrays if version == self._steps else pack_arrays(self._version(version))
            self._began[version] = Unpacked(record)
            messages += self._messages(Action.FIT, server_round, record, names)
        self._remember({name: jobs[name] for name in order[self.buffer :]})
        return messages

    def _running(self) -> dict[str, Job]:
        """The sites that train, without those whose update has grown too old."""
        jobs = {}
        for key, held in self.state.items():
            if not key.startswith(_JOB):
                continue
            version, *times = held.tolist()
            name, job = key.removeprefix(_JOB), Job(int(version), Timing(*times))
            if self._steps - job.version > self.most_stale:
                self.outcome.stragglers[name] = job.timing.seconds
            else:
                jobs[name] = job
        return jobs

    def _begun(self, server_round: int, idle: list[str]) -> dict[str, Job]:
        """Those of the ``idle`` sites that begin now with the current version."""
        assert self.clock is not None
        here = set(self.available(server_round))
        self.outcome.dropouts = [name for name in idle if name not in here]
        room = self.drawn() - (len(self.sites) - len(idle))
        drawn = self._draw([name for name in idle if name in here], room, server_round)
        content = self._content(Action.FIT, server_round, self._sent)
        size, answer = content_bytes(content), self.expected(content)
        jobs = {}
        for name in drawn:
            timing = self.timing(name, server_round, size, answer)
            if self.clock.late(timing):
                self.outcome.stragglers[name] = timing.seconds
            else:
                jobs[name] = Job(self._steps, timing)
        return jobs

    def _version(self, version: int) -> Arrays:
        """The tensors of an earlier version."""
        start = f"{_VERSION}{version}/"
        return {
            key.removeprefix(start): array
            for key, array in self.state.items()
            if key.startswith(start)
        }

    def _remember(self, left: Mapping[str, Job]) -> None:
        """Keep the jobs that are ``left`` and the versions that they began from."""
        used = {job.version for job in left.values()}
        self.state = {
            key: array
            for key, array in self.state.items()
            if not key.startswith(_JOB)
            and (not key.startswith(_VERSION) or int(key.split("/")[1]) in used)
        }
        for name, job in left.items():
            self.state[f"{_JOB}{name}"] = np.array([job.version, *astuple(job.timing)])
        if self._steps in used:
            for name, array in self.current.items():
                self.state[f"{_VERSION}{self._steps}/{name}"] = array

    def prepared(self, update: Update) -> Update:
        """The current model, changed as the site changed the one it began from."""
        version = self._next[update.site].version
        stale = self._steps - version
        update.metrics["staleness"] = float(stale)
        if not stale:
            return update
        factors = dict.fromkeys(self.steered, 1 / math.sqrt(1 + stale))
        moved = Scaled(update.arrays, self._began[version], factors, onto=self.current)
        return replace(update, arrays=moved)

    def step(self, name: str, combined: np.ndarray) -> np.ndarray:
        """Move by ``lr`` mean changes."""
        return Scaled({name: combined}, self.current, {name: self.lr})[name]

    def finish(self) -> None:
        """Count the step; the older models are done with."""
        self.state[_STEPS] = np.array(self._steps + 1)
        self._began = {}

    def pass_time(self, server_round: int) -> None:
        """To when the last update of the buffer arrives."""
        assert self.clock is not None
        ends = [timing.end_s for timing in self.outcome.timings.values()]
        self.now = max(ends, default=self.now + self.clock.wait_s)

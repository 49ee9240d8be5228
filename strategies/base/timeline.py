"""A strategy in simulated time: who can be asked, who answers in time, and when a round ends."""

from __future__ import annotations

from typing import ClassVar

from fedshift.protocol import messages as protocol
from fedshift.protocol.flower import Message, RecordDict
from fedshift.protocol.messages import Instruction, content_bytes
from fedshift.strategies.base.clock import Clock, Timing
from fedshift.strategies.base.replies import RoundOutcome


class Timeline:
    """What a strategy asks of its clock; without one all sites are there, and no time passes."""

    exchanges: ClassVar[bool] = True
    """Whether sites learn from each other: if not, each trains a model alone."""
    answered: ClassVar[bool] = False
    """Whether sites send extras: arrays beside the model, named and shaped as its tensors."""
    work: ClassVar[float] = 1.0
    """How many gradients a site computes for each of its local steps."""

    sites: dict[str, int]
    """Name -> Flower node of the sites that train, sorted by name."""
    names: dict[int, str]
    instruction: Instruction
    outcome: RoundOutcome
    clock: Clock | None = None
    now: float = 0.0
    """Simulated seconds since the start of the run; 0 without a clock."""

    def available(self, server_round: int) -> list[str]:
        """The sites that can be asked in this round, sorted: all without a clock, and all those
        that train alone, whom nobody asks."""
        if self.clock is None or not self.exchanges:
            return list(self.sites)
        return [name for name in self.sites if self.clock.available(name, server_round)]

    def timing(self, site: str, server_round: int, down: int, up: int) -> Timing:
        """How long a site that is asked now takes, for ``down`` bytes to it and ``up`` from it. A
        site that trains alone waits for no transfer."""
        assert self.clock is not None
        steps = self.work * self.instruction.steps
        down, up = (down, up) if self.exchanges else (0, 0)
        return self.clock.timing(site, server_round, self.now, down=down, steps=steps, up=up)

    def in_time(self, server_round: int, messages: list[Message]) -> list[Message]:
        """The messages to sites that are there and will answer before the clock's deadline. Those
        that would answer too late, and so train in vain, are the round's stragglers."""
        if self.clock is None:
            return messages
        outcome = self.outcome
        here = self.available(server_round)
        outcome.dropouts = [name for name in self.sites if name not in here]
        asked = []
        for message in messages:
            name = self.names[message.metadata.dst_node_id]
            if name in outcome.dropouts:
                del outcome.bytes_down[name]
                continue
            up = self.expected(message.content)
            timing = self.timing(name, server_round, outcome.bytes_down[name], up)
            if self.exchanges and self.clock.late(timing):
                outcome.stragglers[name] = timing.seconds
            else:
                outcome.timings[name] = timing
                asked.append(message)
        return asked

    def expected(self, content: RecordDict) -> int:
        """How many bytes of arrays a site that is asked this answers with, at most."""
        keys = (protocol.ARRAYS, protocol.EXTRAS) if self.answered else (protocol.ARRAYS,)
        return content_bytes(RecordDict({key: content[key] for key in keys if key in content}))

    def pass_time(self, server_round: int) -> None:
        """Move :attr:`now` to the end of the round's training, by the bytes that were really sent.

        Called before the new model is scored, which takes no simulated time. A round lasts as long
        as its slowest site, but the deadline where it left stragglers behind.
        """
        if self.clock is None:
            return
        outcome = self.outcome
        for name in outcome.timings:
            if name in outcome.sites:
                down, up = outcome.bytes_down[name], outcome.bytes_up[name]
                outcome.timings[name] = self.timing(name, server_round, down, up)
        ends = [timing.end_s for timing in outcome.timings.values()]
        if outcome.stragglers:
            assert self.clock.deadline_s is not None
            ends.append(self.now + self.clock.deadline_s)
        self.now = max(ends, default=self.now + self.clock.wait_s)

"""A finished federation played again, in which one site's answers can be anything."""

from __future__ import annotations

import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedshift.client.policy import Policy
from fedshift.client.simulation import LocalSites
from fedshift.protocol.flower import (
    ConfigRecord,
    Grid,
    Message,
    RecordDict,
    set_message_id,
    shallow_copy,
)
from fedshift.protocol.messages import CONFIG, Action, Instruction
from fedshift.runs.config import load
from fedshift.runs.federation import open_federation
from fedshift.runs.stored import build_plan
from fedshift.server.app import coordinate
from fedshift.server.engines.inline import InlineGrid
from fedshift.server.plan import RunPlan
from fedshift.server.progress import Silent

Key = tuple[int, Action]
Change = Callable[[RecordDict], RecordDict | Message]


def _action(message: Message) -> Action:
    record = message.content[CONFIG]
    assert isinstance(record, ConfigRecord)
    return Instruction.from_record(record).action


class Heard(Silent):
    """Keeps what a run says on the terminal."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def advance(self, what: str) -> None:
        self.said.append(what)

    def say(self, sentence: str) -> None:
        self.said.append(sentence)


class _Recording(InlineGrid):
    """Keeps every reply of the sites."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.replies: dict[Key, list[RecordDict]] = defaultdict(list)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        ids = list(message_ids)
        asked = [self._pending[message_id].message for message_id in ids]
        found = list(super().pull_messages(ids))
        for message, reply in zip(asked, found, strict=True):
            key = (message.metadata.dst_node_id, _action(message))
            self.replies[key].append(reply.content)
        return found


@dataclass
class Replay(Grid):
    """Answers as the recorded sites did, whatever it is asked; ``changes`` says which answers are
    others, by node and action."""

    replies: dict[Key, list[RecordDict]]
    changes: dict[Key, Change] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._asked: Counter[Key] = Counter()
        self._waiting: dict[str, Message] = {}

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def send_and_receive(self, *args: Any, **kwargs: Any) -> Iterable[Message]:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return sorted({node for node, _ in self.replies})

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            message_id = uuid.uuid4().hex
            copy = shallow_copy(message)
            for same in (message, copy):
                set_message_id(same, message_id)
            self._waiting[message_id] = copy
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._answer(self._waiting.pop(message_id)) for message_id in message_ids]

    def _answer(self, message: Message) -> Message:
        key = (message.metadata.dst_node_id, _action(message))
        recorded = self.replies[key]
        content = RecordDict(dict(recorded[min(self._asked[key], len(recorded) - 1)]))
        self._asked[key] += 1
        changed = self.changes[key](content) if key in self.changes else content
        return changed if isinstance(changed, Message) else Message(changed, reply_to=message)


@dataclass
class Recorded:
    """A federation whose answers were recorded, and how to play it again."""

    plan: RunPlan
    names: tuple[str, ...]
    replies: dict[Key, list[RecordDict]]

    @classmethod
    def of(cls, folder: Path, *settings: str) -> Recorded:
        """Run a federation in ``folder`` and keep what its sites answer."""
        config = load([*settings, f"out={folder}"])
        federation, data = open_federation(config)
        plan = build_plan(folder, config, federation.parts, "recorded")
        policy = Policy.from_config(config["policy"])
        sites = LocalSites(federation, data, policy, folder / "sites", config["seed"])
        with _Recording(sites, ["cpu"], 1) as grid:
            coordinate(grid, deepcopy(plan), Silent())
            return cls(plan, sites.names, dict(grid.replies))

    def node(self, site: str) -> int:
        """The node of ``site``."""
        ((first, _), *_) = sorted(self.replies)
        return first + self.names.index(site)

    def play(self, folder: Path, changes: dict[Key, Change] | None = None) -> Heard:
        """Coordinate the federation again, in ``folder``."""
        heard = Heard()
        # Strategies hold what they learnt.
        plan = replace(deepcopy(self.plan), out=folder)
        coordinate(Replay(self.replies, changes or {}), plan, heard)
        return heard

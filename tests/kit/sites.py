"""A grid over real sites that are in this process, without a network between."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from fedshift.client.agent.folder import own_settings
from fedshift.client.agent.site import Site
from fedshift.client.policy import Policy
from fedshift.protocol.flower import (
    Error,
    Message,
    set_message_id,
    shallow_copy,
)
from fedshift.server.grid import RunGrid

FIRST_NODE = 11


def open_sites(
    folders: Mapping[str, Path], states: Path, policy: Policy | None = None, **data: Any
) -> dict[str, Site]:
    """A site for each folder of images, with its state under ``states``."""
    return {
        name: Site(name, own_settings(folder, **data), policy or Policy(), states / name)
        for name, folder in folders.items()
    }


class LocalGrid(RunGrid):
    """Node 11 is the first of ``sites``, which may be taken out to be away. ``answer``, given a
    site and a message, may do something else than the site would."""

    def __init__(
        self,
        sites: Mapping[str, Site],
        answer: Callable[[Site, Message], Message] = lambda site, message: site.handle(message),
    ) -> None:
        super().__init__()
        self.sites = dict(sites)
        self.nodes = {FIRST_NODE + k: name for k, name in enumerate(sites)}
        self.enrolled: Mapping[int, str] = dict(self.nodes)
        self.answer = answer
        self._replies: dict[str, Message] = {}

    def get_node_ids(self) -> Iterable[int]:
        """One node a site."""
        return [node for node, name in self.nodes.items() if name in self.sites]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Have each message answered."""
        ids = []
        for message in messages:
            copy = shallow_copy(message)
            name = uuid.uuid4().hex
            for same in (message, copy):
                set_message_id(same, name)
            site = self.sites.get(self.nodes.get(message.metadata.dst_node_id, ""))
            self._replies[name] = (
                self.answer(site, copy)
                if site is not None
                else Message(Error(105, "it is away"), reply_to=copy)
            )
            ids.append(name)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies."""
        return [self._replies.pop(name) for name in message_ids]

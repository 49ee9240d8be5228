"""Sites and coordinators in this process: real sockets, real keys, and work that is an echo."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from fedshift.client.agent.agent import Agent
from fedshift.client.agent.connection import Address, Signer, connect, trust
from fedshift.client.agent.frames import Outbox
from fedshift.client.agent.keys import make_key
from fedshift.protocol.fleet import CALLS, MEDIA_TYPE
from fedshift.protocol.flower import (
    Array,
    ArrayRecord,
    Message,
    MetricRecord,
    RecordDict,
)
from fedshift.protocol.messages import Action, Instruction, pack_arrays, request
from fedshift.protocol.parcel import Parcel, Wrapper, unwrap

NO_END = 1e12


def question(node: int, seed: int = 1, ttl: float = NO_END, size: int = 4096) -> Message:
    """A message to a node, whose array holds ``size`` numbers that follow from ``seed``."""
    arrays = pack_arrays({"a": np.random.default_rng(seed).normal(size=size)})
    content = request(Instruction(Action.FIT, seed=seed), arrays)
    return Message(content=content, dst_node_id=node, message_type="train", ttl=ttl)


def echo(asked: Parcel) -> Parcel:
    """The reply to a message: its own arrays."""
    message = unwrap(asked.head, asked.contents)
    arrays = {
        name: Array(found.dtype, found.shape, found.stype, found.data)
        for name, found in message.content["arrays"].items()
    }
    content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"loss": 1.0})})
    return Wrapper().wrap(Message(content=content, reply_to=message))


@dataclass
class Worker:
    """Answers by ``answer``."""

    answer: Callable[[Parcel], Parcel] = echo

    def start(self) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class SiteFiles:
    """A site's key and where it is kept."""

    folder: Path
    key: Path
    public: Path

    @classmethod
    def made(cls, folder: Path) -> SiteFiles:
        folder.mkdir(parents=True, exist_ok=True)
        found = cls(folder, folder / "site.key", folder / "site.pub")
        make_key(found.key, found.public)
        return found

    @property
    def pem(self) -> bytes:
        """The public key as the site sends it."""
        return Signer(self.key).public


@contextmanager
def agent(
    address: Address, files: SiteFiles, worker: Worker | None = None
) -> Iterator[tuple[Agent, threading.Thread]]:
    """An agent that runs in a thread, and drains at the end."""
    signer = Signer(files.key)
    found = Agent(
        connect(address, signer), signer.public, Outbox(files.folder / "outbox"), worker or Worker()
    )
    thread = threading.Thread(target=_quietly, args=(found,), daemon=True)
    thread.start()
    try:
        yield found, thread
    finally:
        found.drain()
        thread.join(20)


def _quietly(found: Agent) -> None:
    """Run; what ended it stands in its status."""
    try:
        found.run()
    except Exception as error:
        found.status.problem = str(error)


class ByHand:
    """Requests of the Fleet API made by hand, over HTTPS."""

    def __init__(self, port: int, authority: Path, signer: Signer | None) -> None:
        self.signer = signer
        self.client = httpx.Client(
            base_url=f"https://127.0.0.1:{port}", verify=trust(authority), timeout=30
        )

    def post(self, path: str, body: bytes = b"", **headers: str) -> httpx.Response:
        signed = dict(self.signer.headers()) if self.signer else {}
        return self.client.post(
            path, content=body, headers={"content-type": MEDIA_TYPE, **signed, **headers}
        )

    def call(self, name: str, **fields: Any) -> httpx.Response:
        call = CALLS[name]
        return self.post(call.path, call.request(**fields).SerializeToString())

    def answer(self, name: str, **fields: Any) -> Any:
        response = self.call(name, **fields)
        assert response.status_code == 200, response.text
        return CALLS[name].response.FromString(response.content)

    def denied(self, name: str, **fields: Any) -> tuple[int, str]:
        """The status and the words."""
        response = self.call(name, **fields)
        return response.status_code, response.json()["detail"]

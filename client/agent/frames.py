"""Parcels as bytes: between the agent's parent and its child, and in its outbox on the disk."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path

from fedshift.protocol.fleet import MessageHead, ObjectTree
from fedshift.protocol.parcel import Parcel

_LENGTH = 8
_CHUNK = 2**20


def to_parts(parcel: Parcel) -> list[bytes]:
    """A parcel's bytes, in parts: a header of lengths, then the head, the tree and the objects."""
    parts = [
        parcel.head.SerializeToString(),
        parcel.tree.SerializeToString(),
        *parcel.contents.values(),
    ]
    header = json.dumps([[len(part) for part in parts], list(parcel.contents)]).encode()
    return [len(header).to_bytes(_LENGTH, "little"), header, *parts]


def from_bytes(data: bytes) -> Parcel:
    """Undo :func:`to_parts`; raises ``ValueError`` for bytes that are no whole parcel."""
    view = memoryview(data)
    start = _LENGTH + int.from_bytes(view[:_LENGTH], "little")
    try:
        sizes, names = json.loads(bytes(view[_LENGTH:start]))
        parts = []
        for size in sizes:
            parts.append(bytes(view[start : start + size]))
            start += size
        head, tree, *contents = parts
        if start != len(view):
            raise ValueError("the parcel is cut short")
        return Parcel(
            MessageHead.FromString(head),
            ObjectTree.FromString(tree),
            dict(zip(names, contents, strict=True)),
        )
    except ValueError:
        raise
    except Exception as error:
        raise ValueError("there is no parcel") from error


def send(channel: socket.socket, parcel: Parcel) -> None:
    """Send a parcel over a local socket; raises ``OSError`` when nobody is there."""
    parts = to_parts(parcel)
    channel.sendall(sum(map(len, parts)).to_bytes(_LENGTH, "little"))
    for part in parts:
        channel.sendall(part)


def receive(channel: socket.socket) -> Parcel | None:
    """The next parcel; None when the other end is closed."""
    size = _exactly(channel, _LENGTH)
    if size is None:
        return None
    data = _exactly(channel, int.from_bytes(size, "little"))
    return None if data is None else from_bytes(data)


def _exactly(channel: socket.socket, size: int) -> bytes | None:
    data = bytearray(size)
    view, got = memoryview(data), 0
    while got < size:
        count = channel.recv_into(view[got:], min(_CHUNK, size - got))
        if not count:
            return None
        got += count
    return bytes(data)


class Outbox:
    """Replies that are finished and not yet taken, on the site's disk, so that a site that is
    killed sends what it has and does no work twice."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for torn in folder.glob("*.part"):  # What a kill cut short; one agent has the folder.
            torn.unlink()

    def put(self, asked: str, parcel: Parcel) -> None:
        """Keep the reply to the message ``asked``; raises ``OSError`` when the disk is full."""
        path = self._path(asked)
        beside = path.with_suffix(".part")
        opened = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            with os.fdopen(opened, "wb") as file:
                file.writelines(to_parts(parcel))
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except OSError:
            beside.unlink(missing_ok=True)  # Half a reply must not keep a full disk full.
            raise

    def drop(self, asked: str) -> None:
        """The reply to ``asked`` was taken, or is not wanted."""
        self._path(asked).unlink(missing_ok=True)

    def replies(self) -> Mapping[str, Parcel]:
        """What is kept, by the message that it replies to; what is damaged is removed."""
        found = {}
        for path in sorted(self._folder.glob("*.parcel")):
            try:
                found[path.stem] = from_bytes(path.read_bytes())
            except ValueError:
                path.unlink()
        return found

    def _path(self, asked: str) -> Path:
        if not asked.isalnum():
            raise ValueError("a message's id is no hash")
        return self._folder / f"{asked}.parcel"

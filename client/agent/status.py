"""What the agent tells of itself, in a file that the site's account reads while it runs."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, fields
from pathlib import Path

from fedshift.client.agent.agent import Status
from fedshift.protocol.storage import read_json

FILE = "status.json"
_EVERY_S = 1.0
OLD_S = 30.0
"""The agent calls the coordinator every five seconds; a contact older than this is none."""


class StatusFile:
    """Keeps the agent's status in ``state/status.json``: at once what has changed, and every second
    how much."""

    def __init__(self, state: Path) -> None:
        self._path = state / FILE
        self._written = 0.0
        self._told: tuple[str, str, str] | None = None

    def write(self, status: Status) -> None:
        """Write it, unless that was done within the second and only numbers have moved."""
        told = (status.state, status.problem, status.working)
        if told == self._told and time.monotonic() - self._written < _EVERY_S:
            return
        self._told, self._written = told, time.monotonic()
        beside = self._path.with_suffix(f".{os.getpid()}.part")
        try:
            with os.fdopen(
                os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w"
            ) as file:
                file.write(json.dumps({**asdict(status), "pid": os.getpid()}) + "\n")
            beside.replace(self._path)
        except OSError:  # A full disk must not end the agent.
            beside.unlink(missing_ok=True)


def read(state: Path) -> Status | None:
    """The agent's status, ``ended`` when its process is gone, ``out of contact`` when it says that
    it is connected and what it wrote of its last contact is older than :data:`OLD_S`; None: there
    never was one. Raises :class:`UserError` for a damaged file."""
    return read_json(state / FILE, _parsed)


def _parsed(node: dict[str, object]) -> Status:
    pid = node.pop("pid")
    status = Status(**{field.name: node[field.name] for field in fields(Status)})  # type: ignore[arg-type]
    if not isinstance(pid, int) or not _lives(pid):
        status.state = "ended"
    elif status.state == "connected" and time.time() - (status.contact or 0.0) > OLD_S:
        status.state = "out of contact"
        status.problem = status.problem or (
            f"no contact was noted for {OLD_S:g} s: look into agent.log, and whether the disk is "
            "full"
        )
    return status


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

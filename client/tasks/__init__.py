"""The tasks: a module is one (:mod:`fedshift.protocol.registry`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedshift.protocol.registry import Registry

if TYPE_CHECKING:
    from fedshift.client.contract.task import Task

TASKS: Registry[Task] = Registry(
    "task", __name__, "fedshift.tasks", "fedshift.client.contract.task:Task"
)
"""Each is a frozen dataclass whose fields are what the coordinator says of it."""

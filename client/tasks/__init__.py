"""The tasks by name. A task's module is imported when the task is built, not before."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from fedshift import UserError
from fedshift.client.contract.task import Task
from fedshift.protocol.settings import from_mapping, suggest

TASKS = {"segmentation": "fedshift.client.tasks.segmentation:Segmentation"}
"""Task's name -> ``module:class``; the class is a dataclass whose fields are its settings."""


def named(name: str) -> type[Task]:
    """The class of the task ``name``; raises :class:`fedshift.UserError` when there is none."""
    if name not in TASKS:
        raise UserError(f"task={name} is not known{suggest(name, TASKS)}")
    module, _, attribute = TASKS[name].partition(":")
    task: type[Task] = getattr(import_module(module), attribute)
    return task


def build(settings: Mapping[str, Any]) -> Task:
    """The task that ``settings["name"]`` names, of the other settings.

    Raises :class:`fedshift.UserError` for an unknown task or setting and for a value of the wrong
    type or out of range.
    """
    fields = dict(settings)
    return from_mapping(named(fields.pop("name")), fields, "task")

"""``fedshift methods`` and ``tasks``: what sites can train, for what, and from which paper."""

from __future__ import annotations

import inspect

from rich.table import Table

from fedshift.cli.console import PlainConsole
from fedshift.client.contract.method import Participation
from fedshift.client.methods import METHODS
from fedshift.client.tasks import TASKS

_SITES = {
    Participation.LABELLED: "with labels",
    Participation.ALL: "all",
    Participation.BOTH: "all; needs both kinds",
}


def list_methods() -> None:
    """Print every method's name, what it does, for which tasks, where it trains and its stages."""
    table = Table(box=None, padding=(0, 2), show_header=True)
    for column in ("method", "what it is", "tasks", "trains at sites", "stages"):
        table.add_column(column, overflow="fold", no_wrap=column in ("method", "task"))
    (methods, broken), (tasks, others) = METHODS.usable(), TASKS.usable()
    for name, method in methods.items():
        table.add_row(
            name,
            _headline(method),
            ", ".join(name for name, task in tasks.items() if method.serves(task)),
            _SITES[method.participation],
            ", ".join(method.stages),
        )
    console = PlainConsole()
    console.print(table)
    console.print(
        "Settings: configs/method/NAME.yaml; pages: docs/methods/NAME.md; another one: "
        "docs/adding_a_method.md.",
    )
    console.warn(broken + others)


def list_tasks() -> None:
    """Print every task's name, what it is, the labels it needs and the methods that serve it."""
    table = Table(box=None, padding=(0, 2), show_header=True)
    for column in ("task", "what it is", "labels", "methods"):
        table.add_column(column, overflow="fold", no_wrap=column in ("method", "task"))
    (methods, broken), (tasks, others) = METHODS.usable(), TASKS.usable()
    for name, task in tasks.items():
        serving = [method for method, cls in methods.items() if cls.serves(task)]
        table.add_row(name, task.title, task.form, ", ".join(serving))
    console = PlainConsole()
    console.print(table)
    console.print(
        "Settings: configs/task/NAME.yaml; labels: docs/sites.md; another: docs/adding_a_task.md."
    )
    console.warn(broken + others)


def _headline(cls: type) -> str:
    """What the module of a class says first."""
    paragraph = (inspect.getdoc(inspect.getmodule(cls)) or "").split("\n\n")[0]
    return " ".join(paragraph.split("\n"))

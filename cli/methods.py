"""``fedshift methods``: what sites can train, and from which paper."""

from __future__ import annotations

import inspect

from rich.table import Table

from fedshift.cli.console import PlainConsole
from fedshift.client.contract.method import Participation
from fedshift.client.methods import METHODS

_SITES = {
    Participation.LABELLED: "with labels",
    Participation.ALL: "all",
    Participation.BOTH: "all; needs both kinds",
}


def list_methods() -> None:
    """Print every method's name, what it does, where it trains and its stages."""
    table = Table(box=None, padding=(0, 2), show_header=True)
    for column in ("method", "what it is", "trains at sites", "stages"):
        table.add_column(column, overflow="fold")
    for name in METHODS.names():
        method = METHODS.named(name)
        headline = (inspect.getdoc(inspect.getmodule(method)) or "").split("\n\n")[0].split("\n")
        table.add_row(
            name, " ".join(headline), _SITES[method.participation], ", ".join(method.stages)
        )
    console = PlainConsole()
    console.print(table)
    console.print(
        "Settings: configs/method/NAME.yaml; pages: docs/methods/NAME.md. Any of them takes an "
        "augmentation, such as augmentation=fbp.",
    )

"""``fedshift strategies``: how the coordinator can combine the sites, and what each way costs."""

from __future__ import annotations

from rich.table import Table

from fedshift.cli.console import PlainConsole
from fedshift.strategies import STRATEGIES


def list_strategies() -> None:
    """Print every strategy's name and paper, what travels, what a site keeps, and the cost."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("strategy", no_wrap=True)
    table.add_column("paper", no_wrap=True)
    table.add_column("what travels")
    table.add_column("a site keeps")
    table.add_column("cost", no_wrap=True)
    known, broken = STRATEGIES.usable()
    for name, strategy in known.items():
        down, up = strategy.cost
        table.add_row(
            name, strategy.paper or "-", strategy.travels, strategy.stays, f"{down} + {up}"
        )
    console = PlainConsole()
    console.print(table)
    console.print(
        "Cost: what a selected site receives + sends in a round, in sizes of the model. What each "
        "does and when to use it: docs/strategies.md; its settings: configs/strategy/NAME.yaml.",
    )
    console.warn(broken)

"""``fedshift report``: draw a run's figures and page again, from its tables alone."""

from __future__ import annotations

from pathlib import Path

from fedshift.cli.console import PlainConsole
from fedshift.runs import earlier
from fedshift.server import report as reports


def report(run: Path) -> None:
    """Rebuild ``figures/`` and ``report.html`` of ``run`` and its folds; print its summary."""
    earlier.complete(run)
    for fold in sorted(run.glob("folds/*")):
        reports.build(fold)
    reports.build(run)
    PlainConsole().print(reports.summary(run))

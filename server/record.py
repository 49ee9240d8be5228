"""What a run writes of itself as it goes, read back: its sites, its task, its rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedshift.protocol.cards import MethodCard, SiteCard
from fedshift.protocol.storage import read_json, read_json_lines

IDENTITY = "identity.json"
"""Under what name a deployed run is known to its sites, from before it began to its end; the run
folder of a simulation has none."""


def read_cards(path: Path) -> list[SiteCard] | None:
    """The site cards of a run's ``sites.json``, None before there is one; raises
    :class:`UserError` when it is damaged."""

    def parse(node: Any) -> list[SiteCard]:
        if not node:
            raise ValueError("it names no site")
        return [SiteCard.from_json(fields) for fields in node]

    return read_json(path, parse)


def read_method(run: Path) -> MethodCard | None:
    """What the sites of the run in that folder said of its method and task, None before its first
    round is done; where each site is left out in turn, any fold says it. Raises
    :class:`UserError` when ``method.json`` is damaged.
    """
    for folder in (run, *sorted(run.glob("folds/*"))):
        card = read_json(folder / "checkpoints" / "method.json", MethodCard.from_json)
        if card is not None:
            return card
    return None


def read_rounds(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``rounds.jsonl``; none before its first round is done. Raises
    :class:`UserError` for a damaged one."""

    def parse(line: Any) -> dict[str, Any]:
        if not isinstance(line, dict) or not isinstance(line["round"], int):
            raise ValueError("it is no round's line")
        for key in ("sites", "failed", "rejected"):
            if not isinstance(line[key], dict):
                raise ValueError(f"{key} is no dict")
        for key in ("seconds", "bytes_down", "bytes_up"):
            if not isinstance(line[key], int | float):
                raise ValueError(f"{key} is no number")
        return line

    return read_json_lines(run / "rounds.jsonl", parse)


def rounds_of(run: Path) -> list[list[dict[str, Any]]]:
    """The lines of ``rounds.jsonl`` of the run in that folder, or of each of its folds."""
    return [read_rounds(folder) for folder in sorted(run.glob("folds/*")) or [run]]


def untrained(run: Path) -> str:
    """Why no site's training counted in any round of the run in that folder, or of one of its
    folds, so that its models are the initial ones; empty where one did, or no round is done."""
    for lines in filter(None, rounds_of(run)):
        trained = any(
            metrics.get("examples") and site not in line["rejected"]
            for line in lines
            for site, metrics in line["sites"].items()
        )
        if not trained:
            last = lines[-1]
            why = [
                f"site {site}: {why}" for site, why in (last["failed"] | last["rejected"]).items()
            ]
            return f"no site trained in any round: {[*why, last['skipped']][0]}"
    return ""

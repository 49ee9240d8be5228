"""The page of a coordinator at work: its sites, its runs and how far they are."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path

from fedshift import UserError
from fedshift.protocol.words import count, some
from fedshift.server.report.figures import curves, to_png
from fedshift.server.report.html import document, figure, section
from fedshift.server.report.run import read_run
from fedshift.server.report.sections import federation
from fedshift.server.report.words import format_bytes

GOING = "going"
_DRAWN = 3
"""So many runs are drawn, those that go on first; all are listed."""


@dataclass(frozen=True)
class LiveSite:
    """An enrolled site: whether it is ``here``, when it was last heard of (seconds since the epoch,
    None: not since the server began), its version, how many messages it has not answered, how many
    of its answers were refused, and the bytes that came from it and went to it."""

    name: str
    here: bool
    contact: float | None
    version: str
    awaited: int
    refused: int
    bytes_in: int
    bytes_out: int

    def heard(self, now: float) -> str:
        """When it was last heard of, in words, at the time ``now`` (seconds since the epoch)."""
        if self.contact is None:
            return "not yet"
        return f"{ago(now - self.contact)} ago"


@dataclass(frozen=True)
class LiveRun:
    """A run: what became of it (``going``, ``done``, ``failed``, ``stopped``) and ``why``, the
    ``round`` it is in of ``rounds``, what it did last, the sites ``awaited``, and its folder."""

    name: str
    state: str
    why: str
    since: str
    round: int
    rounds: int
    doing: str
    awaited: list[str]
    folder: Path

    @property
    def told(self) -> str:
        """What there is to say of its state, in a sentence."""
        if self.state != GOING:
            return self.why
        waits = f"waits for {some(self.awaited)}" if self.awaited else ""
        return "; ".join(filter(None, (waits, self.doing and f"last: {self.doing}")))


@dataclass(frozen=True)
class Refused:
    """What was refused of a ``site``, and when (seconds since the epoch)."""

    at: float
    site: str
    what: str


class LivePage:
    """Draws the page; curves only when there are new ones."""

    def __init__(self) -> None:
        self._drawing = threading.Lock()
        self._drawn: dict[str, tuple[object, str]] = {}

    def draw(
        self, sites: Sequence[LiveSite], runs: Sequence[LiveRun], refused: Sequence[Refused]
    ) -> str:
        """A whole page, which needs no other file and no network."""
        now = time.time()
        newest = list(reversed(runs))
        runs = sorted(newest, key=lambda run: run.state != GOING)
        going = sum(run.state == GOING for run in runs)
        here = sum(site.here for site in sites)
        with self._drawing:
            parts = [self._run(run) for run in runs[:_DRAWN]]
        facts = (
            f"{here} of {count(len(sites), 'site')} in contact · {count(going, 'run')} going · "
            f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(now))}"
        )
        sections = (_sites(sites, now), _runs(runs), _refusals(refused, now), *parts)
        return document("Coordinator", escape(facts), _awaited(runs), sections)

    def _run(self, run: LiveRun) -> str:
        """The curves of a run and what failed in it, as its report has them."""
        lines = run.folder / "rounds.jsonl"
        if not lines.exists() or not lines.stat().st_size:
            return ""
        key = lines.stat().st_mtime_ns, lines.stat().st_size
        held, page = self._drawn.get(run.name, (None, ""))
        if held != key:
            try:
                contents = read_run(run.folder)
            except UserError:
                return page  # It is being written; the next look is whole.
            png = to_png({"curves.png": partial(curves, contents)})["curves.png"]
            picture = figure(
                png, "curves.png", "Each site's validation and training loss after every round."
            )
            down, up = (
                sum(line[k] for line in contents.rounds) for k in ("bytes_down", "bytes_up")
            )
            text = (
                f"{count(len(contents.rounds), 'round')} of {run.rounds} done; "
                f"{format_bytes(down)} went to the sites and {format_bytes(up)} came back."
            )
            page = section(f"Run {run.name}", f'<p class="lead">{text}</p>{picture}')
            page += federation.problems(contents, "")
            self._drawn[run.name] = key, page
        return page


def ago(seconds: float) -> str:
    """A length of time in the unit that fits: 40 s, 12 min, 3 h, 2 days."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _awaited(runs: Sequence[LiveRun]) -> str:
    said = []
    for run in runs:
        if run.state != GOING:
            continue
        waits = f"waits for {some(run.awaited)}" if run.awaited else run.doing
        more = f"; {escape(waits)}" if waits else ""
        said.append(f"<li><b>{escape(run.name)}</b>: round {run.round} of {run.rounds}{more}</li>")
    if not said:
        return '<p class="answer">No run goes on.</p>'
    return f'<ul class="answer">{"".join(said)}</ul>'


def _sites(sites: Sequence[LiveSite], now: float) -> str:
    if not sites:
        return section(
            "Sites", "<p>None is enrolled: <code>fedshift server enroll NAME site.pub</code></p>"
        )
    columns = ("contact", "last heard", "version", "awaited", "refused", "received", "sent")
    body = [
        [
            "here" if site.here else "away",
            site.heard(now),
            site.version or "–",
            str(site.awaited),
            str(site.refused),
            format_bytes(site.bytes_in),
            format_bytes(site.bytes_out),
        ]
        for site in sites
    ]
    return section("Sites", _table("site", columns, [site.name for site in sites], body))


def _runs(runs: Sequence[LiveRun]) -> str:
    if not runs:
        return ""
    body = [[run.state, f"{run.round} of {run.rounds}", run.told] for run in runs]
    names = [run.name for run in runs]
    return section("Runs", _table("run", ("state", "round", "told"), names, body))


def _refusals(refused: Sequence[Refused], now: float) -> str:
    if not refused:
        return ""
    items = "".join(
        f"<li>{ago(now - found.at)} ago, <b>{escape(found.site)}</b>: {escape(found.what)}</li>"
        for found in reversed(refused)
    )
    return section("Refused", f'<p class="lead">The newest first.</p><ul>{items}</ul>')


def _table(
    first: str, columns: Sequence[str], names: Sequence[str], rows: Sequence[Sequence[str]]
) -> str:
    head = "".join(f'<th scope="col" class="text">{escape(name)}</th>' for name in columns)
    lines = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(
            f'<td class="text{"" if column == "told" else " name"}">{escape(cell)}</td>'
            for column, cell in zip(columns, cells, strict=True)
        )
        + "</tr>"
        for name, cells in zip(names, rows, strict=True)
    )
    return (
        f'<div class="scroll"><table><thead><tr><th scope="col" class="text">{first}</th>{head}'
        f"</tr></thead><tbody>{lines}</tbody></table></div>"
    )

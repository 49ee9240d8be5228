"""What is done with a table of images before anything is trained or scored: plan, check, tell.

``fedshift sites check`` prints the same findings that stop a run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedshift import UserError
from fedshift.client import planning
from fedshift.client.policy import Policy
from fedshift.protocol.words import count
from fedshift.runs.config import Config
from fedshift.runs.federation import data_settings, open_federation
from fedshift.runs.watching import Tell, silent
from fedshift.sites import DataSettings, Decision, Finding, Summary, check, plan, survey
from fedshift.sites.findings import ALL, FINAL, grouped
from fedshift.sites.settings import AUTO
from fedshift.sites.types import Federation

UNPLANNED = "plan"
"""The finding's code where a setting cannot be chosen."""
_OF_PHANTOMS = {"spacing_mm": None, "normalise": "percentile"}
"""A phantom is drawn on the network's grid."""


@dataclass(frozen=True)
class Checked:
    """A federation with its settings as far as they could be chosen, and what is wrong with it."""

    federation: Federation
    data: DataSettings
    summaries: Mapping[str, Summary | None]
    decisions: tuple[Decision, ...]
    findings: tuple[Finding, ...]

    @property
    def stopping(self) -> list[Finding]:
        """The errors that ``data.accept`` does not name, or that acceptance does not help."""
        accepted = self.data.accept
        return [
            finding
            for finding in self.findings
            if finding.severity == "error"
            and (finding.code in FINAL or not {ALL, finding.code} & {*accepted})
        ]


def examine(config: Config) -> Checked:
    """Choose what ``data`` leaves open from what the sites' policies let go, and look for faults.

    Raises :class:`UserError` for a config or table that cannot be used at all.
    """
    federation, data = open_federation(config)
    policy = Policy.from_config(config["policy"])
    surveyed = {site.name: survey(site, data) for site in federation.sites}
    summaries = {name: planning.summary(found, policy) for name, found in surveyed.items()}
    sent = {name: planning.hashes(found, policy) for name, found in surveyed.items()}
    hashes = {name: found for name, found in sent.items() if found is not None}
    decisions: tuple[Decision, ...] = ()
    unplanned: list[Finding] = []
    try:
        data, decisions = plan(summaries, data)
    except UserError as error:
        problem, _, way_out = str(error).rstrip(".").rpartition("; ")
        unplanned = [Finding("error", UNPLANNED, "", "", problem, way_out)]
    # Last: what keeps a site from telling of its images says more.
    findings = [*check(federation, data, config["seed"], hashes), *unplanned]
    return Checked(federation, data, summaries, decisions, tuple(findings))


def settle(
    config: Config,
    tell: Tell = silent,
    earlier: Config | None = None,
    told: set[str] | None = None,
) -> Config:
    """``config`` with numbers for every ``auto`` of ``data``, once nothing stands in the way.

    ``earlier`` is the config of the run that is gone on with, whose numbers stay. Tells the
    decisions and the findings but for lines in ``told``, to which it adds. Raises
    :class:`UserError` when an error is found that ``data.accept`` does not name; all are told
    before.
    """
    if config["federation"]["kind"] == "phantom":
        node = dict(config["data"])
        planned = {**_OF_PHANTOMS, "size": config["federation"]["size"]}
        node |= {key: value for key, value in planned.items() if node[key] == AUTO}
        return {**config, "data": node}
    node = _gone_on_with(config["data"], earlier)
    found = examine({**config, "data": node})
    told = set() if told is None else told
    for sentence in (*(decision.told() for decision in found.decisions), *sentences(found)):
        if sentence not in told:
            tell(sentence)
            told.add(sentence)
    if found.stopping:
        raise UserError(_stopped(found.stopping))
    return _settled(config, node, found.data, found.decisions)


def settle_told(
    config: Config,
    ask: Callable[[Config], Mapping[str, Summary | None]],
    tell: Tell = silent,
    earlier: Config | None = None,
) -> Config:
    """As :func:`settle`, where nobody but the sites can look at the images: ``ask`` gives what each
    told of its own (None where it told nothing), and is called only where something is open; it is
    given the config with all that is known by then."""
    node = _gone_on_with(config["data"], earlier)
    data = data_settings({**config, "data": node})
    summaries = ask({**config, "data": node}) if data.auto else {}
    data, decisions = plan(summaries, data)
    for decision in decisions:
        tell(decision.told())
    return _settled(config, node, data, decisions)


def _gone_on_with(node: Mapping[str, Any], earlier: Config | None) -> dict[str, Any]:
    """The node ``data``, with what the ``earlier`` config of the same run planned where it is
    open."""
    if earlier is None:
        return dict(node)
    kept = earlier["data"].get("planned", {})
    # A window is planned where none is given; of the others null is a value of its own.
    left = [key for key in kept if node[key] == AUTO or (key == "window" and node[key] is None)]
    given = {key: earlier["data"][key] for key in left}
    return {**node, **given, "planned": {key: kept[key] for key in given}}


def _settled(
    config: Config, node: Mapping[str, Any], data: DataSettings, decisions: Sequence[Decision]
) -> Config:
    planned = {decision.key: _plain(decision.value) for decision in decisions}
    return {**config, "data": {**node, **planned, "planned": dict(data.planned)}}


def _stopped(stopping: list[Finding]) -> str:
    """One sentence of why nothing is run: the first error, and how many more are told above."""
    first, *more = grouped(stopping)
    codes = dict.fromkeys(finding.code for finding in stopping)
    others = f" ({count(len(more), 'more error')} above)" if more else ""
    accept = ""
    if not FINAL & codes.keys():
        accept = f", or go on all the same with data.accept=[{','.join(codes)}]"
    return f"{first.told()}{accept}{others}"


def sentences(found: Checked) -> list[str]:
    """The findings, one sentence for many files of a kind, which begins with "error" or "warning";
    accepted errors say so."""
    told = []
    stopping = {id(finding) for finding in found.stopping}
    for group in grouped(found.findings):
        first = group.first
        accepted = first.severity == "error" and id(first) not in stopping
        mark = " (accepted)" if accepted else ""
        told.append(f"{first.severity} {first.code}{mark}: {group.told()}")
    return told


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def for_report(config: Config) -> list[dict[str, str]]:
    """The findings of a planned config as they may stand in a page that is passed on: no path."""
    if config["federation"]["kind"] == "phantom":
        return []
    found = examine(config)
    return [
        {
            "severity": group.first.severity,
            "code": group.first.code,
            "sites": ", ".join(sorted({finding.site for finding in group.findings} - {""})),
            "sentence": group.abroad(),
        }
        for group in grouped(found.findings)
    ]

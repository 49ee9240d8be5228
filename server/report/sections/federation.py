"""The sites: their data, what left them, and what failed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from fedshift.protocol.words import count
from fedshift.server.report.figures import LISTED_SITES, MANY_SITES
from fedshift.server.report.html import figure, section
from fedshift.server.report.run import Run, Sent
from fedshift.server.report.words import format_bytes

MAX_MISSING = 20


def egress(run: Run, figures: Mapping[str, bytes]) -> str:
    if run.in_turn:
        return ""
    if run.deployed:
        return _received(run)
    if not run.egress:
        return section("What left each site", "<p>The ledger is empty.</p>")
    purposes = sorted({purpose for sent in run.egress.values() for purpose in sent})
    many = len(run.egress) > MANY_SITES
    listed = [] if many else sorted(run.egress)
    lines, totals = [], dict.fromkeys(run.egress, 0)
    for purpose in purposes:
        sent = {site: found[purpose] for site, found in run.egress.items() if purpose in found}
        for site, item in sent.items():
            totals[site] += item.bytes
        cells = "".join(
            f"<td>{format_bytes(sent[site].bytes) if site in sent else '–'}</td>" for site in listed
        )
        amounts = [item.bytes for item in sent.values()]
        spread = f"<td>{len(sent)}</td><td>{format_bytes(max(amounts))}</td>" if many else ""
        lines.append(
            f'<tr><th scope="row">{escape(purpose)}</th>{cells}{spread}'
            f"<td>{sum(item.records for item in sent.values()):,}</td>"
            f"<td>{format_bytes(sum(amounts))}</td>"
            f'<td class="text">{_record_names(sent.values())}</td></tr>'
        )
    head = "".join(f'<th scope="col">{escape(site)}</th>' for site in listed)
    foot = "".join(f"<td>{format_bytes(totals[site])}</td>" for site in listed)
    if many:
        head = '<th scope="col">sites</th><th scope="col">most at one site</th>'
        foot = f"<td>{len(totals)}</td><td>{format_bytes(max(totals.values()))}</td>"
    records = sum(item.records for found in run.egress.values() for item in found.values())
    picture = figure(figures["egress.png"], "egress.png", "Bytes that left, over the whole run.")
    return section(
        "What left each site",
        '<p class="lead">Every tensor and every number that left a site, summed from the ledger '
        "that the site keeps (<code>egress.jsonl</code>, one line a record). The pooled reference "
        "is left out: it is trained by no real site.</p>"
        '<div class="scroll"><table><thead><tr><th scope="col" class="text">purpose</th>'
        f'{head}<th scope="col">records</th><th scope="col">total</th>'
        f'<th scope="col" class="text">what</th></tr></thead><tbody>{"".join(lines)}</tbody>'
        f'<tfoot><tr><th scope="row">all</th>{foot}<td>{records:,}</td>'
        f"<td>{format_bytes(sum(totals.values()))}</td><td></td></tr></tfoot></table></div>{picture}",
    )


def _received(run: Run) -> str:
    """Of real sites: what came to the coordinator; each keeps its own ledger of what left it."""
    came: dict[str, int] = {}
    for line in run.rounds:
        for arm in (line, *line["baselines"].values()):
            for site, told in arm["sites"].items():
                came[site] = came.get(site, 0) + told["bytes_up"]
    rows = "".join(
        f'<tr><th scope="row">{escape(site)}</th><td>{format_bytes(came[site])}</td></tr>'
        for site in sorted(came)
    )
    return section(
        "What left each site",
        '<p class="lead">Each site notes everything that leaves it in a ledger of its own, which '
        "stays there (<code>fedshift client ledger</code> checks it). In training and validation "
        "the coordinator received:</p>"
        '<div class="scroll"><table><thead><tr><th scope="col">site</th>'
        f'<th scope="col">received</th></tr></thead><tbody>{rows}</tbody></table></div>',
    )


def _record_names(sent: Iterable[Sent]) -> str:
    """``answer: details, site; arrays: 64 names``: the records, by what they belong to."""
    kinds: dict[str, list[str]] = {}
    for name in sorted(set().union(*(item.names for item in sent))):
        kind, _, rest = name.partition("/")
        kinds.setdefault(kind, []).append(rest)
    parts = [
        kind + ": " + (", ".join(names) if len(names) <= 3 else f"{len(names)} names")
        for kind, names in kinds.items()
    ]
    return f"<small>{escape('; '.join(parts))}</small>"


def sites(run: Run) -> str:
    if not run.cards:
        return ""
    lines = []
    for name in (site for site in run.sites if site in run.cards):
        card = run.cards[name]
        splits = "".join(
            f"<td>{_split(card['splits'].get(split))}</td>" for split in ("train", "val", "test")
        )
        spacing = " × ".join(_range(axis) for axis in zip(*card["spacing_mm"], strict=True))
        role = "<small>unseen: trains nothing</small>" if card["role"] == "unseen" else ""
        notes = "<br>".join(escape(note) for note in card["notes"])
        lines.append(
            f'<tr><th scope="row">{escape(name)}{role}</th>'
            f'<td class="text name">{escape(", ".join(card["vendors"]))}</td>{splits}'
            f'<td class="name">{escape(spacing)}</td>'
            f'<td class="text"><small>{notes}</small></td></tr>'
        )
    table = (
        '<div class="scroll"><table><thead><tr><th scope="col" class="text">site</th>'
        '<th scope="col" class="text">vendor</th><th scope="col">train</th>'
        '<th scope="col">validation</th><th scope="col">test</th>'
        '<th scope="col">spacing (mm)</th><th scope="col" class="text">notes</th></tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>{_teaching(run)}"
    )
    if len(lines) > LISTED_SITES:
        table = f"<details><summary>All {len(lines)} sites</summary>{table}</details>"
    return section("Sites", table)


def _teaching(run: Run) -> str:
    """Which site teaches which part, where not every site teaches all."""
    cards = {name: run.cards[name] for name in run.sites if name in run.cards}
    taught = {name: card["teaches"] for name, card in cards.items() if card.get("teaches")}
    taught = {name: counts for name, counts in taught.items() if any(counts.values())}
    if all(len(set(counts.values())) == 1 for counts in taught.values()):
        return ""
    parts = list(dict.fromkeys(name for counts in taught.values() for name in counts))
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in parts)
    body = "".join(
        f'<tr><th scope="row">{escape(site)}</th>'
        + "".join(f"<td>{counts.get(name) or '–'}</td>" for name in parts)
        + "</tr>"
        for site, counts in taught.items()
    )
    return (
        '<h3>Who teaches what</h3><p class="lead">Labelled training slices, by what their label '
        "tells of. What a site's label does not tell of is neither trained as absent nor scored."
        "</p>"
        f'<div class="scroll"><table><thead><tr><th scope="col" class="text">site</th>{head}</tr>'
        f"</thead><tbody>{body}</tbody></table></div>"
    )


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low}–{high}"


def _split(counts: Mapping[str, int] | None) -> str:
    if not counts or not counts["cases"]:
        return "–"
    return (
        f"{count(counts['subjects'], 'subject')}<small>{count(counts['cases'], 'case')}, "
        f"{counts['labelled']} of {count(counts['slices'], 'slice')} labelled</small>"
    )


def problems(run: Run, anchor: str = "problems") -> str:
    if not (run.rounds or run.folds):
        return ""
    body = ""
    if not run.problems:
        body = "<p>Training: every site asked answered, and every update was used.</p>"
    else:
        lines = "".join(
            f'<tr><th scope="row">{escape(problem.site)}</th>'
            f'<td class="text">{escape(problem.kind)}</td>'
            f'<td>{len(problem.rounds)}</td><td class="text">{_ranges(problem.rounds)}</td>'
            f'<td class="text">{escape(problem.reason)}</td></tr>'
            for problem in run.problems[:LISTED_SITES]
        )
        left_out = len(run.problems) - LISTED_SITES
        more = f"<p>And {left_out} more, in <code>rounds.jsonl</code>.</p>"
        body = (
            '<div class="scroll"><table><thead><tr><th scope="col" class="text">site</th>'
            '<th scope="col" class="text">what</th><th scope="col">times</th>'
            '<th scope="col" class="text">rounds</th><th scope="col" class="text">reason</th>'
            f"</tr></thead><tbody>{lines}</tbody></table></div>{more if left_out > 0 else ''}"
        )
    if run.missing:
        items = "".join(f"<li>{escape(note)}</li>" for note in run.missing[:MAX_MISSING])
        left_out = len(run.missing) - MAX_MISSING
        more = f"<li>and {left_out} more, in <code>checkpoints/evaluation.json</code></li>"
        body += (
            "<p>Missing from the evaluation after the last round:</p>"
            f"<ul>{items}{more if left_out > 0 else ''}</ul>"
        )
    elif run.cross_site:
        body += "<p>Evaluation: nothing is missing.</p>"
    return section("Failures and rejected updates", body, anchor)


def _ranges(rounds: Sequence[int]) -> str:
    """Round numbers in order, runs of them joined: ``1–3, 7``."""
    spans: list[list[int]] = []
    for number in sorted(rounds):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(f"{low}–{high}" if high > low else f"{low}" for low, high in spans)

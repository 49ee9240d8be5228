"""A comparison's result in words: a few plain sentences, and how its numbers are written."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fedshift.protocol.measures import Measure
from fedshift.protocol.words import count
from fedshift.server.comparison.ranking import Standing
from fedshift.server.comparison.statistics import FEWEST_PAIRS, Estimate
from fedshift.server.report.answer import UPPER_BOUND

UNKNOWN_TEXT = "–"


def sentences(standings: Sequence[Standing], measure: Measure) -> list[str]:
    """In terms of the headline ``measure``: which entrant is best in the mean, whether its
    difference to the baseline is real, which is best at the worst site, and what is missing; the
    first sentence is the verdict."""
    ranked = [row for row in standings if row.place]
    said = []
    if not ranked:
        said.append("No entrant has been scored at every site yet.")
    elif len(ranked) == 1:
        only = ranked[0]
        said.append(
            f"Only {only.label} is finished, with a mean {measure.title} of "
            f"{measure.said(only.mean.value)}: there is nothing to rank it with yet."
        )
    else:
        baseline = next((row for row in standings if row.outcome == "baseline"), None)
        said += [_verdict(ranked, baseline, measure), *_worst_site(ranked, measure)]
    said += [
        f"The upper bound, {row.label} ({UPPER_BOUND}), reaches {measure.said(row.mean.value)}."
        for row in standings
        if row.upper_bound and row.mean.known
    ]
    return [*said, *_missing(standings)]


def _verdict(ranked: Sequence[Standing], baseline: Standing | None, measure: Measure) -> str:
    best = ranked[0]
    article = "an" if measure.title[0].lower() in "aeiou" else "a"
    said = (
        f"{best.label} is best in the mean over sites, with {article} {measure.title} of "
        f"{measure.said(best.mean.value)}"
    )
    if baseline is None or not baseline.mean.known:
        return f"{said}; without a finished baseline no difference can be tested."
    if best is baseline:
        other = ranked[1]
        return (
            f"{said}, and is the baseline; next is {other.label} with "
            f"{measure.said(other.mean.value)}, {_difference(other, measure)}."
        )
    return f"{said}, {_difference(best, measure, of=baseline.label)}."


def _difference(row: Standing, measure: Measure, of: str = "") -> str:
    """``0.031 more than fedavg (95 % interval 0.012 to 0.050), a real difference (p = 0.002)``."""
    found = row.difference
    if not found.known:
        return f"with no seed in common{f' with {of}' if of else ''}: not tested"
    words = measure.said(abs(found.value))
    words += " more" if measure.sign * found.value >= 0 else " less"
    words += f" than {of}" if of else ""
    words += f" ({interval_words(found, measure)})" if found.has_interval else ""
    return f"{words}: {outcome_words(row, measure)}"


def outcome_words(row: Standing, measure: Measure) -> str:
    """Whether the difference to the baseline is real, and by which tests."""
    if row.outcome == "n too small" and measure.whole:
        return "one training cannot show whether that is real (it takes two seeds)"
    if row.outcome == "n too small":
        return (
            f"{count(row.subjects, 'test subject')} cannot show whether that is real (it takes "
            f"{FEWEST_PAIRS})"
        )
    tests = {
        f"over {row.subjects} subjects": row.p_subjects_holm,
        f"over {row.shared_seeds} seeds": row.p_seeds_holm,
    }
    told = ", ".join(f"{over} {p_words(p)}" for over, p in tests.items() if not math.isnan(p))
    if row.outcome == "not shown":
        return f"not shown to be real ({told})"
    if math.isnan(row.p_seeds_holm):
        return f"real for these trained models ({told}); one seed cannot say more"
    return f"a real difference ({told})"


def p_words(p_value: float) -> str:
    """``p = 0.012``, or ``p < 0.001``."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def p_value(value: float) -> str:
    """Three decimals, or ``<0.001``: of a table's cell."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def deciding_p(row: Standing) -> float:
    """The larger of the p-values, as all must be small; nan where nothing was tested."""
    if row.outcome == "n too small":
        return math.nan
    tested = [p for p in (row.p_subjects_holm, row.p_seeds_holm) if not math.isnan(p)]
    return max(tested, default=math.nan)


def outcome(row: Standing) -> str:
    """What the table says of the difference to the baseline."""
    if row.outcome in ("better", "worse") and math.isnan(row.p_seeds_holm):
        return f"{row.outcome} (one seed)"
    return row.outcome


def known(value: float, form: Callable[[float], str]) -> str:
    """The value as ``form`` prints it, a dash for nan."""
    return UNKNOWN_TEXT if math.isnan(value) else form(value)


def time_words(hours: float) -> str:
    """``2.5 h`` or, below a tenth of an hour, ``90 s``."""
    return f"{hours:.3g} h" if hours >= 0.1 else f"{3600 * hours:.3g} s"


def with_unit(text: str, measure: Measure) -> str:
    """``text`` as an axis or a column says it."""
    return f"{text} ({measure.unit})" if measure.unit else text


def gain(value: float, measure: Measure) -> str:
    """A difference with its sign, which a rounded zero has none of; a dash for nan."""
    size = measure.cell(abs(value))
    signed = not math.isnan(value) and size != measure.cell(0.0)
    return f"{'+' if value > 0 else '-'}{size}" if signed else size


def gain_interval(found: Estimate, measure: Measure) -> str:
    """``-0.010 to +0.034``."""
    return f"{gain(found.low, measure)} to {gain(found.high, measure)}"


def interval_words(found: Estimate, measure: Measure) -> str:
    """``95 % interval 0.790 to 0.834``."""
    low, high = (gain(end, measure).lstrip("+") for end in (found.low, found.high))
    return f"95 % interval {low} to {high}"


def _worst_site(ranked: Sequence[Standing], measure: Measure) -> list[str]:
    best, first = max(ranked, key=lambda row: measure.sign * row.worst.value), ranked[0]
    if first.best_site == first.worst_site:
        return []  # There is one site: its mean is all there is.
    where = f"{measure.said(best.worst.value)} at {best.worst_site}"
    if best.worst.value == first.worst.value:
        return [f"It is also best at its worst site ({where})."]
    return [
        f"At the worst site {best.label} is best ({where}; {first.label} has "
        f"{measure.said(first.worst.value)} at {first.worst_site})."
    ]


def _missing(standings: Sequence[Standing]) -> list[str]:
    said = []
    failed = sum(row.failed for row in standings)
    left = sum(row.cells - row.seeds - row.failed for row in standings)
    total = sum(row.cells for row in standings)
    if failed or left:
        parts = [
            f"{number} {word}" for number, word in ((failed, "failed"), (left, "left")) if number
        ]
        said.append(f"Of {count(total, 'cell')}, {' and '.join(parts)}.")
    return said

"""What can be wrong with a federation's files, each kind under a code that stays the same.

A finding is told in two forms. On the user's own terminal and in a site's own log it names the
file (:meth:`Finding.told`). What leaves a site names the table's row and the code, because a path
may hold a patient's name (:meth:`Finding.abroad`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedshift import UserError

Severity = Literal["error", "warning"]

ALL = "all"
"""Stands for every code in ``data.accept``."""

CODES = {
    "colours": "it is in colours, or complex",
    "compressed": "its pixels are compressed in a way that is not decoded here",
    "constant": "the image is constant",
    "cropped": "labelled pixels lie outside the network's grid",
    "damaged": "the file cannot be read",
    "dimensions": "it is neither 2-D nor 3-D",
    "duplicate": "two rows show the same image pixel for pixel",
    "empty-mask": "the mask is empty and counts as unlabelled",
    "empty-split": "a split has no labelled slice",
    "label-map": "names and values of labels do not fit together",
    "label-shape": "the label's shape is not its image's",
    "label-turned": "the label fits its image far better when it is turned or flipped",
    "label-values": "nothing says what the values of the label files mean, and they differ",
    "missing-file": "the file does not exist",
    "missing-slices": "the stack lacks slices",
    "mixed-slices": "the folder holds slices of different kinds",
    "near-duplicate": "two images look alike",
    "no-image": "the site has no usable image",
    "no-label-image": "the label's values are not whole numbers",
    "not-finite": "it holds values that are not finite",
    "plan": "a setting cannot be chosen for all sites",
    "rows-unmatched": "rows of the table belong to no site",
    "several-series": "it holds several series",
    "slice-axis": "its slices run along another axis than the federation's",
    "spacing-header": "the header's spacing and its affine's differ",
    "spacing-invalid": "the header's spacing is not a length",
    "spacing-mixed": "some images know their pixels' size and others do not",
    "spacing-outlier": "the spacing is far from the federation's",
    "spacing-table": "the table's spacing and the header's differ",
    "spacing-unknown": "no pixel size is known, so that distances are in pixels",
    "structure-absent": "no label of the site shows a structure that it is said to annotate",
    "structure-nowhere": "no label file holds a structure",
    "structure-unsaid": "no label of the site shows a structure, and nothing says it was drawn",
    "structures-exchanged": "two structures seem exchanged",
    "subject-twice": "one subject is at two sites",
    "too-many-values": "a label file holds more values than structures fit",
    "unknown-format": "the format is not read here",
    "unreadable": "the file cannot be opened",
    "value-outside": "a label value is in no structure",
    "values-differ": "one name has different values at different sites",
}
"""Every kind of finding and what it means, without a word of any file."""


class FileFault(UserError):
    """One file cannot be used.

    ``code`` names the kind of fault, ``problem`` continues a sentence that begins with the file,
    and ``way_out`` says what to do.
    """

    def __init__(self, code: str, path: Path | str, problem: str, way_out: str) -> None:
        super().__init__(f"{path} {problem}; {way_out}.")
        self.code = code
        self.path = str(path)
        self.problem = problem
        self.way_out = way_out


@dataclass(frozen=True)
class Remark:
    """What a reader noticed in a file that can be used all the same: worded as a fault is."""

    code: str
    problem: str
    way_out: str


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: ``error`` when results would be, ``warning`` when they may be.

    ``file`` is empty when the finding concerns a whole site, and ``site`` when the federation.
    ``row`` is the line of the table that lists the file, 0 where there is none.
    """

    severity: Severity
    code: str
    site: str
    file: str
    problem: str
    way_out: str
    row: int = 0

    def told(self) -> str:
        """For the user's own terminal and log: with the file's name."""
        where = ": ".join(part for part in (self.site, self.file) if part)
        return f"{where}: {self.problem}; {self.way_out}" if where else self.problem

    def abroad(self) -> str:
        """For what leaves the site: the row and the code, nothing that a file or a text held."""
        where = f"row {self.row}: " if self.row else ""
        return f"{where}{self.code}"


TOLD = 3
"""As many names stand in a sentence; the rest is counted."""


def listed(names: Iterable[str]) -> str:
    """``a, b and c``, or ``a, b, c and 7 more``."""
    every = list(names)
    if len(every) > TOLD:
        return f"{', '.join(every[:TOLD])} and {len(every) - TOLD} more"
    return " and ".join(filter(None, [", ".join(every[:-1]), *every[-1:]]))


@dataclass(frozen=True)
class Group:
    """Findings of one kind, told in one sentence."""

    findings: tuple[Finding, ...]

    @property
    def first(self) -> Finding:
        """The finding whose words stand for all."""
        return self.findings[0]

    def told(self) -> str:
        """One sentence with a count and three names, for the user's own terminal and log."""
        first = self.first
        if len(self.findings) == 1:
            return first.told()
        sites = sorted({finding.site for finding in self.findings})
        files = [Path(finding.file).name for finding in self.findings if finding.file]
        what = f"{len(files)} files ({listed(files)})" if files else f"{len(sites)} sites"
        where = listed(sites)
        alike = len({finding.problem for finding in self.findings}) == 1
        who = "each" if alike else "the first"
        problem = f"{who} {first.problem}" if files else first.problem
        return f"{where}: {what}: {problem}; {first.way_out}"

    def abroad(self) -> str:
        """One sentence with a count and three rows, for what leaves a site."""
        rows = [f"row {finding.row}" for finding in self.findings if finding.row]
        return f"{CODES[self.first.code]} ({self.first.code}{': ' if rows else ''}{listed(rows)})"


def grouped(findings: Iterable[Finding]) -> list[Group]:
    """The findings by severity, code and site, in their order; of many sites, in one group."""
    by_site: dict[tuple[str, str, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        by_site[finding.severity, finding.code, finding.site].append(finding)
    by_code: dict[tuple[str, str], list[list[Finding]]] = defaultdict(list)
    for (severity, code, _), found in by_site.items():
        by_code[severity, code].append(found)
    groups = []
    for parts in by_code.values():
        if len(parts) > TOLD:
            groups.append(Group(tuple(finding for part in parts for finding in part)))
        else:
            groups += [Group(tuple(part)) for part in parts]
    return groups

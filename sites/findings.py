"""What can be wrong with a federation's files, each kind under a code that stays the same.

A finding is told in two forms. On the user's own terminal and in a site's own log it names the
file (:meth:`Finding.told`). What leaves a site names the table's row and the code, because a path
may hold a patient's name (:meth:`Finding.abroad`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedshift import UserError

Severity = Literal["error", "warning"]

ALL = "all"
"""Stands for every code in ``data.accept``."""
FINAL = frozenset(
    {"label-map", "no-labels", "plan", "site-empty", "too-many-values", "value-outside"}
)
"""Codes that acceptance does not help: there is nothing to go on with."""

CODES = {
    "between-axes": "it lies halfway between two axes of the body",
    "box-across": "a box lies across the slices of its image",
    "box-empty": "a box has no area",
    "byte-order": "it is big-endian and compressed",
    "codes-disagree": "its two places in space (sform and qform) differ",
    "colours": "it is in colours, or complex",
    "compressed": "its pixels are compressed in a way that is not decoded here",
    "constant": "the image is constant",
    "contours-between": "contours between the image's slices were not drawn",
    "contours-cross": "contours of one structure cross",
    "contours-midway": "contours lie midway between the image's slices",
    "contours-oblique": "a contour runs through several slices of the image",
    "contours-off-slices": "contours beside the image's slices were drawn on the nearest",
    "contours-small": "a structure holds no voxel's centre",
    "contours-twice": "it holds contours twice",
    "coordinates-small": "all coordinates of the site's labels lie from 0 to 1",
    "cropped": "a part of what is labelled lies outside the network's grid",
    "damaged": "the file cannot be read",
    "detector-spacing": "the pixel spacing is that at the detector, not in the body",
    "dimensions": "it is neither 2-D nor 3-D",
    "drawing-without-place": "it does not say where a frame lies in the patient",
    "drawn-on-other-series": "it was drawn on another series in the same frame of reference",
    "duplicate": "two rows show the same image pixel for pixel",
    "duplicate-slices": "the stack holds one slice twice",
    "empty-mask": "the label is empty and counts as unlabelled",
    "empty-split": "a split has no labelled slice",
    "fractional-label": "the segmentation is fractional, and more than half counts as inside",
    "frames-in-time": "its frames follow each other in time, not in space",
    "graph-asymmetric": "the matrix of a graph is not symmetric",
    "graph-shape": "the matrix of a graph is not square",
    "graph-size": "a graph has another number of nodes than the federation's",
    "image-without-place": "the label is drawn in the patient's coordinates, its image has none",
    "label-by-other-code": "the label lies on its image by an unusual pair of sform and qform only",
    "label-cropped": "the label covers a part of its image's grid",
    "label-grid": "the label's frames do not lie on its image's grid",
    "label-map": "names and values of labels do not fit together",
    "label-misplaced": "the label lies elsewhere than its image",
    "label-mostly-outside": "most of the label lies outside its image",
    "label-number": "a structure has a number that no label can have",
    "label-outside": "a part of the label lies outside its image",
    "label-shape": "the label's shape is not its image's",
    "label-turned": "the label fits its image far better when it is turned or flipped",
    "label-twice": "one label file is listed for two subjects",
    "label-values": "nothing says what the values of the label files mean, and they can mean two "
    "things",
    "label-without-image": "a table of labels has rows for images that are not listed",
    "label-without-place": "the label says nothing of its place and is taken to lie as its image",
    "localizers": "localizers beside the series were left out",
    "lossy-label": "the label's compression keeps values only nearly",
    "missing-file": "the file does not exist",
    "missing-slices": "the stack lacks slices",
    "mixed-slices": "the folder holds slices of different kinds",
    "modalities-mixed": "the site's images are of several modalities",
    "name-twice": "a label file gives one name to two structures",
    "names-alike": "labels have names that are nearly alike and count as different",
    "names-differ": "label files give one value names that differ",
    "near-duplicate": "two images look alike",
    "needs-highdicom": "a DICOM segmentation needs highdicom, which is not installed",
    "no-contours": "it holds no closed contour",
    "no-image": "it holds no image with pixels",
    "no-label-image": "the label's values are not whole numbers",
    "no-labels": "no image of a site that trains is labelled",
    "no-name": "a row of a table of labels does not say what it marks",
    "no-number": "a cell of a table of labels holds no number",
    "no-order": "the order of its slices is unknown",
    "no-orientation": "it says nothing of its place in space, and a usual one is assumed",
    "no-positions": "it does not say where its slices lie, and they are stacked as they come",
    "not-annotated": "the category is none of those that the label is said to tell of",
    "no-structure": "the label tells of no structure of the federation",
    "not-finite": "it holds values that are not finite",
    "not-hounsfield": "normalise=ct takes its values for Hounsfield units, and they hardly are",
    "open-contours": "contours that are not closed were not drawn",
    "other-frame": "the label lies in another frame of reference than its image",
    "other-objects": "objects that do not belong to the series were left out",
    "other-series": "the label was drawn on another series",
    "overlap": "structures of one label overlap",
    "overlapping-segments": "its segments lie in layers, which may overlap",
    "pair-itself": "an image is given as its own pair",
    "pair-of-another": "a pair is said to be of another subject or site than its image",
    "pair-shape": "a paired image has another shape than its image",
    "pixel-aspect": "its pixels are not square and count as such",
    "placed-twice": "a point or a box is given twice for an image",
    "plan": "a setting cannot be chosen for all sites",
    "point-outside": "a point or a box lies outside its image",
    "point-twice": "one landmark is given twice for an image",
    "point-without-slice": "nothing says on which slice of a volume a point lies",
    "polarity": "two tags contradict each other about which end is bright",
    "rescale": "its slope and intercept leave no image",
    "rows-unmatched": "rows of the table belong to no site",
    "scanned-spacing": "the pixel spacing is that of a film that was scanned",
    "several-at-one-position": "it holds several images at one position",
    "several-files": "it keeps its data in several files",
    "several-frames": "it holds one structure twice at one place",
    "several-labels": "the folder holds several drawings",
    "several-scales": "it shows regions of different scale",
    "several-series": "it holds several series",
    "sheared": "its axes are not at right angles",
    "site-empty": "the site has no usable image",
    "slice-axis": "its slices run along another axis than the federation's",
    "slices-skipped": "a structure was drawn on every other slice or fewer",
    "space-unknown": "it does not say which way its axes point",
    "spacing-header": "the header's spacing and its affine's differ",
    "spacing-invalid": "the header's spacing is not a length",
    "spacing-mixed": "some images know their pixels' size and others do not",
    "spacing-outlier": "the spacing is far from the federation's",
    "spacing-table": "the table's spacing and the header's differ",
    "spacing-unknown": "no pixel size is known, so that distances are in pixels",
    "structure-absent": "no label of the site shows a structure that it is said to annotate",
    "structure-empty": "a label lists a structure and draws nothing of it",
    "structure-nowhere": "no label file holds a structure",
    "structure-unsaid": "no label of the site shows a structure, and nothing says it was drawn",
    "structures-exchanged": "two structures seem exchanged",
    "structures-left-out": "structures of the file that are in no structure here were not drawn",
    "subject-twice": "one subject is at two sites",
    "thickness-as-distance": "the slices' thickness is taken for their distance",
    "tiled": "it is a whole-slide image",
    "too-many-values": "a label file holds more values than structures fit",
    "turned-image": "it is turned by its orientation tag",
    "turned-label": "the label is to be turned by its orientation tag",
    "uneven-slices": "its slices are unevenly spaced and count as even",
    "units": "its lengths are not in mm",
    "unknown-format": "the format is not read here",
    "unknown-slice-distance": "the distance of its slices is unknown and counts as 1 mm",
    "unreadable": "the file cannot be opened",
    "value-outside": "a label value is in no structure",
    "values": "it holds no numbers",
    "values-differ": "one name has different values at different sites",
    "white-is-zero": "white is stored as 0",
    "wide-values": "it holds values too large to be read",
    "wrong-suffix": "its name and its content are of different formats",
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
        return (
            f"{where}: {self.problem}; {self.way_out}"
            if where
            else f"{self.problem}; {self.way_out}"
        )

    def abroad(self) -> str:
        """For what leaves the site: the row and the code, nothing that a file or a text held."""
        where = f"row {self.row}: " if self.row else ""
        return f"{where}{self.code}"


TOLD = 3
"""As many names stand in a sentence; the rest is counted."""


def number_of(number: int, one: str, many: str) -> str:
    """``1 image has``, ``2 images have``."""
    return f"{number} {one if number == 1 else many}"


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
        each = dict.fromkeys((finding.site, finding.file) for finding in self.findings)
        files = [file for _, file in each if file]
        problems = len({finding.problem for finding in self.findings})
        alike = problems == 1
        if len({*files}) == 1:
            # A label, or a table of labels, may be that of many images.
            rows = len({finding.row for finding in self.findings})
            what = f"{files[0]}{f' (for {rows} images)' if rows > 1 else ''}: "
            what += "" if alike else f"the first of {problems} faults: it "
        elif files:
            what = (
                f"{len(files)} files ({listed(_names(files))}): {'each' if alike else 'the first'} "
            )
        else:
            what = f"{len(sites)} sites: {'' if alike else 'the first: '}"
        return f"{listed(sites)}: {what}{first.problem}; {first.way_out}"

    def abroad(self) -> str:
        """One sentence with a count and three rows, for what leaves a site."""
        rows = [f"row {finding.row}" for finding in self.findings if finding.row]
        return f"{CODES[self.first.code]} ({self.first.code}{': ' if rows else ''}{listed(rows)})"


def _names(files: Sequence[str]) -> list[str]:
    """The files' names, or their paths where names say nothing: every case has its image.nii."""
    names = [Path(file).name for file in files]
    return names if len({*names}) == len({*files}) else [*files]


def grouped(findings: Iterable[Finding]) -> list[Group]:
    """The findings by severity, code and site, in their order; of many sites, in one group. What
    concerns whole sites is told one by one, because each names its own structures."""
    by_code: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        by_code[finding.severity, finding.code].append(finding)
    groups = []
    for found in by_code.values():
        if len({finding.site for finding in found}) > TOLD:
            groups.append(Group(tuple(found)))
            continue
        parts: dict[tuple[str, int], list[Finding]] = defaultdict(list)
        for number, finding in enumerate(found):
            parts[finding.site, -1 if finding.file else number].append(finding)
        groups += [Group(tuple(part)) for part in parts.values()]
    return groups

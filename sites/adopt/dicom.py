"""A tree of DICOM series, with SEG and RTSTRUCT joined to them by their identifiers.

Only headers are read. Patients become pseudonyms: HMAC-SHA-256 of PatientID (RFC 2104).
"""

from __future__ import annotations

import hashlib
import hmac
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedshift import UserError
from fedshift.sites.adopt.files import IMAGES, TEXTS, Tree, ending
from fedshift.sites.adopt.found import Adopted, Layout, Options, Row, choose, three, values_text
from fedshift.sites.readers import file_list, is_dicom
from fedshift.sites.readers.dicom import DRAWN, NO_IMAGES

TAGS = (
    "SOPClassUID",
    "Modality",
    "Rows",
    "PatientID",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "SeriesInstanceUID",
    "SeriesDescription",
    "ProtocolName",
    "InstitutionName",
    "Manufacturer",
    "ManufacturerModelName",
    "MagneticFieldStrength",
    "ConvolutionKernel",
    "ImageType",
    "ReferencedSeriesSequence",
    "StudiesContainingOtherReferencedInstancesSequence",
    "ReferencedFrameOfReferenceSequence",
    "SegmentSequence",
    "StructureSetROISequence",
)
BLANKED = ("", "anon", "anonymous", "anonymised", "anonymized", "unknown", "none", "n/a", "removed")
"""What stands for PatientID where it was taken out: nobody in particular."""


@dataclass
class Series:
    """The files of one series, and the header of its first."""

    header: Any
    files: list[Path] = field(default_factory=list)

    def text(self, tag: str) -> str:
        value = self.header.get(tag)
        if value is None:
            return ""
        several = not isinstance(value, str) and hasattr(value, "__iter__")
        return "/".join(str(part) for part in value) if several else str(value).strip()

    @property
    def patient(self) -> str:
        """PatientID; empty where it is missing or was only blanked."""
        number = self.text("PatientID")
        return "" if number.casefold().strip("*_- ") in BLANKED else number

    @property
    def sequence(self) -> str:
        said = self.text("SeriesDescription") or self.text("ProtocolName")
        return said or "no description"


def _candidates(tree: Tree) -> Iterator[Path]:
    for file in tree.files:
        if ending(file) not in (*TEXTS, *IMAGES) and file.name.upper() != "DICOMDIR":
            yield file


def detect(tree: Tree) -> bool:
    return any(is_dicom(tree.root / file) for file in _candidates(tree))


def _series(tree: Tree, options: Options, found: Adopted) -> dict[str, Series]:
    series: dict[str, Series] = {}
    for file in _candidates(tree):
        if options.links and (tree.root / file).is_relative_to(options.links):
            continue  # made by an earlier call; the files lie elsewhere
        if not is_dicom(tree.root / file):
            found.left_out["files that are no DICOM"].append(str(file))
            continue
        try:
            header = _header(tree.root / file)
            name = str(header.get("SeriesInstanceUID") or "")
        except Exception as error:  # a damaged header raises nearly anything
            reason = f"DICOM files that cannot be read ({type(error).__name__})"
            found.left_out[reason].append(str(file))
            continue
        if not name:
            found.left_out["DICOM files without a SeriesInstanceUID"].append(str(file))
            continue
        series.setdefault(name, Series(header)).files.append(file)
    return series


def _header(path: Path) -> Any:
    import pydicom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # reading the pixels says what is odd
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(TAGS))


def adopt(tree: Tree, options: Options) -> Adopted:
    found = Adopted("DICOM series", whole=True)
    images: dict[str, tuple[Path, Series]] = {}
    labels: list[Series] = []
    taken: dict[str, Series] = {}
    aside: set[Path] = set()
    for name, series in _series(tree, options, found).items():
        modality = series.text("Modality")
        if modality in DRAWN:
            labels += [Series(_again(tree, series, file), [file]) for file in series.files]
        elif modality in NO_IMAGES or "Rows" not in series.header:
            found.left_out["DICOM files that are no images (reports, plans, doses)"] += [
                str(file) for file in series.files
            ]
        elif "LOCALIZER" in series.text("ImageType").split("/"):
            found.left_out["localizers"] += [str(file) for file in series.files]
        else:
            taken[name] = series
            continue
        aside |= set(series.files)
    for name, series in taken.items():
        path = _path(tree, series, aside, options, found)
        if path is not None:
            images[name] = path, series
    drawn = _drawn(tree, images, labels, options, found)
    chosen = _sequences(images, drawn, options)
    sessions = _sessions(images)
    for name, (path, series) in images.items():
        if series.sequence not in chosen:
            # A folder of links to it is not made.
            shown = series.files[0] if path in found.links else path.relative_to(tree.root)
            found.left_out["series of other sequences"].append(str(shown))
            if name in drawn:
                label = str(drawn[name][0].relative_to(tree.root))
                found.left_out["labels of series that are not here or not taken"].append(label)
            continue
        drawing, values = drawn.get(name, (None, ""))
        patient = series.patient
        subject = pseudonym(options.key, patient) if patient else ""
        found.pseudonyms.add(subject)
        found.rows.append(
            Row(
                path,
                drawing,
                subject=subject,
                session=sessions[name] if patient else "",
                site=series.text("InstitutionName"),
                vendor=series.text("Manufacturer"),
                scanner=series.text("ManufacturerModelName"),
                label_values=values,
                lies_at=tree.root / series.files[0] if path in found.links else None,
                extra={
                    "sequence": series.sequence,
                    "modality": series.text("Modality"),
                    "field_T": series.text("MagneticFieldStrength"),
                    "kernel": series.text("ConvolutionKernel"),
                },
            )
        )
    taken_paths = {row.image for row in found.rows}
    found.links = {path: files for path, files in found.links.items() if path in taken_paths}
    if found.links:
        found.notes.append(
            f"{len(found.links)} series whose files lie among others have folders of links in "
            f"{options.links}; keep those beside the table."
        )
    found.rows.sort(key=lambda row: row.lies_at or row.image)
    found.origin = {
        "site": "InstitutionName",
        "subject": "PatientID, as a pseudonym",
        "session": "the order of a patient's studies by date",
        "vendor": "Manufacturer",
        "scanner": "ManufacturerModelName",
        "label_values": "the names in SEG and RTSTRUCT",
        "sequence": "SeriesDescription, or ProtocolName",
        "modality": "Modality",
        "field_T": "MagneticFieldStrength",
        "kernel": "ConvolutionKernel",
    }
    return found


def pseudonym(key: bytes, patient: str) -> str:
    """``p-`` and 16 hexadecimal digits that only the holder of ``key`` can make of a number."""
    return "p-" + hmac.new(key, patient.encode(), hashlib.sha256).hexdigest()[:16]


def _again(tree: Tree, series: Series, file: Path) -> Any:
    """The header of one file of a series of labels: each may be about another image."""
    return series.header if file == series.files[0] else _header(tree.root / file)


def _path(
    tree: Tree, series: Series, aside: set[Path], options: Options, found: Adopted
) -> Path | None:
    """What the table names: the file, the folder that holds this series, or one of links to it.

    ``aside`` are files that reading a folder passes over, because they are no images. The tree's
    own folder is never named: the table may come to lie in it.
    """
    first = series.files[0]
    if len(series.files) == 1:
        return tree.root / first
    folder = first.parent
    inside = {file.relative_to(tree.root) for file in file_list(tree.root / folder)}
    if folder.parts and inside - aside == set(series.files):
        return tree.root / folder
    if options.links:
        # By a digest: a second call finds the same folder, and it says nothing of the patient.
        name = hashlib.sha256(series.text("SeriesInstanceUID").encode()).hexdigest()[:16]
        path = options.links / name
        found.links[path] = [tree.root / file for file in series.files]
        return path
    found.left_out[
        "series whose files lie among others, in several folders or in none below the one named "
        "(give each a folder of its own, or have folders of links made with --links)"
    ].append(f"{series.sequence} in {folder} ({len(series.files)} files)")
    return None


def _references(series: Series) -> set[str]:
    """The series that a SEG or an RTSTRUCT says it was drawn on."""
    header = series.header
    studies = [header, *(header.get("StudiesContainingOtherReferencedInstancesSequence") or [])]
    named = {
        str(item.get("SeriesInstanceUID", ""))
        for study in studies
        for item in study.get("ReferencedSeriesSequence") or []
    }
    for frame in header.get("ReferencedFrameOfReferenceSequence") or []:
        for study in frame.get("RTReferencedStudySequence") or []:
            for item in study.get("RTReferencedSeriesSequence") or []:
                named.add(str(item.get("SeriesInstanceUID", "")))
    return named - {""}


def _drawn(
    tree: Tree,
    images: Mapping[str, tuple[Path, Series]],
    labels: list[Series],
    options: Options,
    found: Adopted,
) -> dict[str, tuple[Path, str]]:
    """Series -> its label file and what its values mean."""
    of: dict[str, list[tuple[str, Path, Series]]] = defaultdict(list)
    for label in labels:
        file, named = label.files[0], _references(label)
        here = named & set(images)
        if not named:
            found.left_out["labels that do not say which series they were drawn on"].append(
                str(file)
            )
        elif not here:
            found.left_out["labels of series that are not here or not taken"].append(str(file))
        elif len(here) > 1:
            found.left_out["labels drawn on several series at once"].append(str(file))
        else:
            kind = f"{label.text('Modality')} {label.text('SeriesDescription')}".strip()
            of[here.pop()].append((kind, tree.root / file, label))
    counts = Counter(kind for fits in of.values() for kind, _, _ in fits)
    chosen = set(counts)
    if options.label or any(len(fits) > 1 for fits in of.values()):
        words = {kind: str(n) for kind, n in counts.most_common()}
        chosen = choose("--label", "kinds of labels", words, options.label)
    drawn = {}
    for name, fits in of.items():
        left = [(path, label) for kind, path, label in fits if kind in chosen]
        found.left_out["labels of another kind"] += [
            str(path.relative_to(tree.root)) for kind, path, _ in fits if kind not in chosen
        ]
        if len(left) > 1:
            raise UserError(
                f"{tree.root / images[name][1].files[0]} has {len(left)} labels of one kind: "
                f"{three([str(path) for path, _ in left])}; keep the one that counts."
            )
        if left:
            drawn[name] = left[0][0], _values(left[0][1])
    return drawn


def _values(label: Series) -> str:
    """Segment numbers of SEG, ROI numbers of RTSTRUCT, with their names."""
    names = {
        int(item.SegmentNumber): str(item.get("SegmentLabel", ""))
        for item in label.header.get("SegmentSequence") or []
        if "SegmentNumber" in item
    }
    names |= {
        int(item.ROINumber): str(item.get("ROIName", ""))
        for item in label.header.get("StructureSetROISequence") or []
        if "ROINumber" in item
    }
    return values_text(names) if names else ""


def _sequences(
    images: Mapping[str, tuple[Path, Series]],
    drawn: Mapping[str, tuple[Path, str]],
    options: Options,
) -> set[str]:
    """Which sequences are taken: asked for where one study has several."""
    counts = Counter(series.sequence for _, series in images.values())
    labelled = Counter(images[name][1].sequence for name in drawn)
    per_study = Counter(series.text("StudyInstanceUID") for _, series in images.values())
    if not options.sequence and max(per_study.values(), default=0) < 2:
        return set(counts)
    words = {name: f"{n}, {labelled[name]} with a label" for name, n in counts.most_common()}
    return choose("--sequence", "sequences", words, options.sequence)


def _sessions(images: Mapping[str, tuple[Path, Series]]) -> dict[str, str]:
    """Series -> 1, 2, ... in the order of its patient's studies; dates stay out of the table."""
    studies: dict[str, set[tuple[str, str, str]]] = defaultdict(set)
    of = {}
    for name, (_, series) in images.items():
        study = tuple(series.text(t) for t in ("StudyDate", "StudyTime", "StudyInstanceUID"))
        of[name] = series.patient, (study[0], study[1], study[2])
        studies[of[name][0]].add(of[name][1])
    ordered = {patient: sorted(found) for patient, found in studies.items()}
    return {name: str(ordered[p].index(study) + 1) for name, (p, study) in of.items()}


LAYOUT = Layout("dicom", "DICOM series", detect, adopt)

"""BIDS: ``sub-*/ses-*``, sidecars by inheritance, masks by matching entities.

Source: the Brain Imaging Data Structure, 1.9, common principles and derivatives.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fedshift import UserError
from fedshift.sites.adopt.files import IMAGES, Tree, ending, read_json, read_table, stem
from fedshift.sites.adopt.found import (
    Adopted,
    Layout,
    Options,
    Row,
    choose,
    one_of,
    three,
    values_text,
)

MASKS = ("dseg", "mask", "seg", "lesion", "label")
"""Suffixes of label files; ``seg``, ``lesion`` and ``label`` also as a last entity (seg-manual)."""

OF_MASKS = ("desc", "label", "space", "res", "den", "seg", "lesion", "atlas")
"""Entities that a mask has of its own: they tell masks apart, not images."""

OWN_SPACES = ("orig", "scanner", "native", "individual")
"""``space-`` of a mask that lies on its image's own grid; without the entity it does, too."""

SITES = ("site", "site_id", "center", "centre", "institution", "hospital")


@dataclass(frozen=True)
class Name:
    """A BIDS file name taken apart: ``key-value`` entities, and the words between."""

    entities: Mapping[str, str]
    words: tuple[str, ...]

    @classmethod
    def of(cls, path: Path) -> Name:
        parts = stem(path).split("_")
        pairs = [part.split("-", 1) for part in parts if "-" in part]
        return cls(dict(pairs), tuple(part for part in parts if "-" not in part and part))

    @property
    def suffix(self) -> str:
        return self.words[-1] if self.words else ""

    @property
    def is_mask(self) -> bool:
        last = list(self.entities)[-1:]
        return self.suffix in MASKS or bool({"seg", "lesion", "label"} & set(last))

    @property
    def sequence(self) -> str:
        """What tells a subject's images apart: all entities but who, when and which repetition."""
        own = [f"{k}-{v}" for k, v in self.entities.items() if k not in ("sub", "ses", "run")]
        return "_".join([*own, *self.words])

    @property
    def kind(self) -> str:
        """What tells the masks of one image apart."""
        own = [f"{k}-{v}" for k, v in self.entities.items() if k in OF_MASKS and k != "space"]
        return "_".join([*own, *(word for word in self.words if word in MASKS)])


def detect(tree: Tree) -> bool:
    return any(_is_image(file) for file in tree.files)


def _is_image(file: Path) -> bool:
    return (
        len(file.parts) > 1
        and file.parts[0].startswith("sub-")
        and file.name.startswith(f"{file.parts[0]}_")
        and ending(file) in IMAGES
    )


def adopt(tree: Tree, options: Options) -> Adopted:
    found = Adopted("BIDS")
    images: list[tuple[Path, Name]] = []
    masks: list[tuple[Path, Name]] = []
    for file in tree.images:
        name = Name.of(file)
        derived = file.parts[0] == "derivatives"
        if name.is_mask and "sub" in name.entities and (derived or _is_image(file)):
            masks.append((file, name))
        elif _is_image(file):
            images.append((file, name))
        elif not derived:
            found.left_out["images outside the sub- folders"].append(str(file))
        elif name.suffix == "probseg":
            found.left_out["probability maps, which are no labels"].append(str(file))
    sequences = Counter(name.sequence for _, name in images)
    suffixes = Counter(name.suffix for _, name in images)
    given = options.sequence
    if given and given.lower() in {suffix.lower() for suffix in suffixes}:
        chosen = {n.sequence for _, n in images if n.suffix.lower() == given.lower()}
    else:
        counts = {name: str(n) for name, n in sequences.most_common()}
        chosen = choose("--sequence", "sequences", counts, given)
    taken = [(file, name) for file, name in images if name.sequence in chosen]
    labels = _labels(tree, images, {file for file, _ in taken}, masks, found, options)
    found.left_out["images of other sequences"] += [
        str(file) for file, name in images if name.sequence not in chosen
    ]
    people = _participants(tree)
    sidecars = _sidecars(tree, "")
    tables = _sidecars(tree, ".tsv")
    for file, name in taken:
        side = _inherited(tree.root, sidecars, file, name, found)
        person = people.get(f"sub-{name.entities.get('sub', '')}", {})
        mask = labels.get(file)
        row = Row(
            tree.root / file,
            tree.root / mask if mask else None,
            subject=f"sub-{name.entities['sub']}",
            session=name.entities.get("ses", ""),
            site=one_of(person, SITES) or _word(side, "InstitutionName"),
            vendor=_word(side, "Manufacturer") or one_of(person, ("manufacturer", "vendor")),
            scanner=_word(side, "ManufacturersModelName") or one_of(person, ("scanner", "model")),
            label_values=_values(tree.root, tables, mask) if mask else "",
            extra={
                "sequence": name.sequence,
                "modality": _word(side, "Modality"),
                "field_T": _word(side, "MagneticFieldStrength"),
                "kernel": _word(side, "ConvolutionKernel"),
            },
        )
        found.rows.append(row)
    subjects = {row.subject for row in found.rows}
    strangers = sorted(subjects - set(people))
    if people and strangers:
        found.notes.append(
            f"participants.tsv lacks {len(strangers)} of {len(subjects)} subjects "
            f"({three(strangers)}); what it says of the others is not known of them."
        )
    told = {bool(one_of(people.get(subject, {}), SITES)) for subject in subjects}
    found.origin = {
        "site": " or ".join(
            source
            for by_table, source in (
                (True, "participants.tsv"),
                (False, "InstitutionName in the sidecars"),
            )
            if by_table in told
        ),
        "subject": "sub- in the names",
        "session": "ses- in the names",
        "vendor": "Manufacturer in the sidecars, or participants.tsv",
        "scanner": "ManufacturersModelName in the sidecars, or participants.tsv",
        "label_values": "dseg.tsv, or label- in the masks' names",
        "sequence": "the names",
        "modality": "the sidecars",
        "field_T": "MagneticFieldStrength in the sidecars",
        "kernel": "ConvolutionKernel in the sidecars",
    }
    return found


def _labels(
    tree: Tree,
    images: list[tuple[Path, Name]],
    taken: set[Path],
    masks: list[tuple[Path, Name]],
    found: Adopted,
    options: Options,
) -> dict[Path, Path]:
    """Image -> its mask, for the images that are ``taken``.

    All images are looked at: a mask of another one must not fall to one that is taken. A mask that
    names no sequence, where there are several, is a guess.
    """
    fitting: dict[Path, list[tuple[Path, Name]]] = defaultdict(list)
    by_scan: dict[tuple[str, str], list[tuple[Path, Name]]] = defaultdict(list)
    for file, name in images:
        by_scan[name.entities["sub"], name.entities.get("ses", "")].append((file, name))
    unsaid = []
    for mask, name in masks:
        space = name.entities.get("space", "orig")
        words = [word for word in name.words if word not in MASKS]
        own = {k: v for k, v in name.entities.items() if k not in OF_MASKS}
        of = [
            (file, image)
            for file, image in by_scan[name.entities["sub"], name.entities.get("ses", "")]
            if all(image.entities.get(k) == v for k, v in own.items())
            and (not words or words[-1] == image.suffix)
            and (space in OWN_SPACES or space == image.suffix)
        ]
        sources = _sources(tree, mask)
        if sources:
            of = [(file, image) for file, image in of if file.name in sources]
        elif not words and space in OWN_SPACES and len({i.sequence for _, i in of}) > 1:
            of = [(file, image) for file, image in of if file in taken]
            unsaid.append(mask)
        # A mask that fits several images belongs to those that have no entity beside its own.
        of = [(f, i) for f, i in of if set(i.entities) <= set(own)] or of
        if len(of) > 1:
            found.left_out["masks that fit several images alike"].append(str(mask))
        elif of and of[0][0] in taken:
            fitting[of[0][0]].append((mask, name))
        elif of or space in OWN_SPACES:
            found.left_out["masks of images that were not taken"].append(str(mask))
        else:
            found.left_out["masks in another space than their image's"].append(str(mask))
    counts = Counter(_said(mask, name) for fits in fitting.values() for mask, name in fits)
    crowded = any(len(fits) > 1 for fits in fitting.values())
    chosen = set(counts)
    if crowded or options.label:
        words_of = {name: str(n) for name, n in counts.most_common()}
        chosen = _chosen(words_of, options.label)
    labels = {}
    for file, fits in fitting.items():
        left = [mask for mask, name in fits if _said(mask, name) in chosen]
        if len(left) > 1:
            raise UserError(
                f"{file} has {len(left)} masks even so: {', '.join(str(m) for m in left[:3])}; "
                "name one kind with --label."
            )
        if left:
            labels[file] = left[0]
        for mask, _ in fits:
            if mask not in left:
                found.left_out["masks of another kind"].append(str(mask))
    found.guesses["masks that do not name the sequence they were drawn on; taken for this one"] += [
        str(mask) for mask in unsaid if mask in labels.values()
    ]
    return labels


def _chosen(counts: Mapping[str, str], given: str) -> set[str]:
    """Masks by their whole kind, or by one part of it (a folder, an entity, a suffix)."""
    parts = {name for name in counts if given and given in re.split(r"[/_]", name)}
    return parts or choose("--label", "kinds of masks", counts, given)


def _said(mask: Path, name: Name) -> str:
    pipeline = f"{mask.parts[1]}/" if mask.parts[0] == "derivatives" and len(mask.parts) > 2 else ""
    return pipeline + name.kind


def _sources(tree: Tree, mask: Path) -> set[str]:
    """The names of the images a mask's own sidecar says it was made of; empty: it does not say."""
    side = mask.with_name(f"{stem(mask)}.json")
    if side not in tree.known:
        return set()
    try:
        said = read_json(tree.root / side)
    except UserError:
        return set()
    listed = said.get("Sources") or said.get("RawSources") if isinstance(said, dict) else None
    listed = [listed] if isinstance(listed, str) else listed
    return {re.split(r"[/:]", str(name))[-1] for name in listed or []}


def _participants(tree: Tree) -> dict[str, dict[str, str]]:
    path = Path("participants.tsv")
    if path not in tree.known:
        return {}
    rows = read_table(tree.root / path)
    # Tables often leave out the sub- that the standard asks for.
    return {f"sub-{one_of(row, ('participant_id',)).removeprefix('sub-')}": row for row in rows}


def _sidecars(tree: Tree, end: str) -> dict[Path, list[tuple[Path, Name]]]:
    """By folder, the files that say something about others: ``.json``, or tables of labels."""
    found: dict[Path, list[tuple[Path, Name]]] = defaultdict(list)
    for file in tree.files:
        if file.suffix == (end or ".json"):
            name = Name.of(file)
            if not end or name.suffix == "dseg":
                found[file.parent].append((file, name))
    return found


def _applying(
    sidecars: Mapping[Path, list[tuple[Path, Name]]], file: Path, name: Name
) -> list[Path]:
    """The files of ``sidecars`` that hold for ``file``, the nearest last (inheritance)."""
    found = []
    for folder in [*reversed(file.parents)]:
        fits = [
            (len(side.entities), path)
            for path, side in sidecars.get(folder, ())
            if side.suffix == name.suffix
            and all(name.entities.get(k) == v for k, v in side.entities.items())
        ]
        found += [path for _, path in sorted(fits)]
    return found


def _inherited(
    root: Path,
    sidecars: Mapping[Path, list[tuple[Path, Name]]],
    file: Path,
    name: Name,
    found: Adopted,
) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for path in _applying(sidecars, file, name):
        content = _json(root / path)
        if isinstance(content, dict):
            said |= content
        elif str(path) not in found.left_out["sidecars that are no readable JSON"]:
            found.left_out["sidecars that are no readable JSON"].append(str(path))
    return said


@lru_cache(maxsize=4096)
def _json(path: Path) -> Any:
    try:
        return read_json(path)
    except UserError:
        return None


def _word(side: Mapping[str, Any], key: str) -> str:
    value = side.get(key, "")
    if isinstance(value, list):
        value = " ".join(str(part) for part in value)
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value).strip()


def _values(root: Path, tables: Mapping[Path, list[tuple[Path, Name]]], mask: Path) -> str:
    name = Name.of(mask)
    label = name.entities.get("label", "")
    if name.suffix == "mask" and label:
        return values_text({1: label})
    for table in reversed(_applying(tables, mask, name)):
        names = {
            int(row["index"]): row["name"]
            for row in read_table(root / table)
            if row.get("index", "").isdigit() and row.get("name")
        }
        if names:
            return values_text(names)
    return ""


LAYOUT = Layout("bids", "BIDS", detect, adopt)

"""What the values of a label file mean, and which structures it tells of.

Values come from the config, the manifest, or the files themselves. A label file may tell of some
structures only; what it does not annotate is then unknown there, not absent.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedshift import UserError
from fedshift.sites.findings import FileFault, listed
from fedshift.sites.legend import Legend
from fedshift.sites.names import fold
from fedshift.sites.settings import (
    BACKGROUND,
    EMPTY_MASKS,
    IGNORE,
    RESERVED,
    DataSettings,
    nearest,
)
from fedshift.sites.types import IGNORED, ImageSource


@dataclass(frozen=True)
class Own:
    """What a label file says of itself: the names that it gives to values, and which it uses."""

    names: Mapping[int, str]
    values: Collection[int]


class LabelMapError(UserError):
    """A label file and the map of values disagree: the config is wrong, not one image."""


def parse_label_values(text: str, where: str) -> dict[int, str]:
    """Read ``0=bg,1=cord white matter(cord minus GM)`` as value -> structure, without brackets.

    Value 0 and the names ``bg`` and ``background`` are the background, left out of the answer.
    """
    names: dict[int, str] = {}
    for part in re.split(r"[,;]", re.sub(r"\([^)]*\)", "", text)):
        match = re.fullmatch(r"\s*(\d+)\s*[=:]\s*(\S.*?)\s*", part)
        if match is None:
            raise UserError(
                f"{where}: label_values {text!r} cannot be read; write 0=background,1=NAME,... "
                "or set data.labels."
            )
        value, name = int(match[1]), match[2]
        if value > 65535:
            raise UserError(f"{where}: label_values {text!r}: values go up to 65535.")
        if value != 0 and name.lower() not in ("bg", BACKGROUND):
            names[value] = IGNORE if name.lower() == IGNORE else name
    return names


def structures_of(named: Mapping[str, Collection[str]]) -> tuple[str, ...]:
    """The structures that label files name, in the order they first appear; ``named`` maps each
    file to its names, ``ignore`` among them or not.

    Raises:
        UserError: two names that differ in case or spaces alone, which are one structure.
    """
    found: dict[str, str] = {}
    first: dict[str, str] = {}
    for file, names in named.items():
        for name in names:
            key = fold(name)
            if found.setdefault(key, name) != name:
                raise UserError(
                    f"{file} calls a structure {name!r} and {first[key]} calls it {found[key]!r}; "
                    "spell it alike in label_values, or set data.labels."
                )
            first.setdefault(key, file)
    return tuple(name for name in found.values() if name not in RESERVED)


def parse_annotates(text: str) -> tuple[str, ...] | None:
    """Read the manifest's cell ``annotates``, names joined by ``;`` or ``,``; None when empty."""
    names = tuple(name.strip() for name in re.split(r"[;,]", text) if name.strip())
    return names or None


def parse_empty(text: str, where: str) -> str:
    """Read the manifest's cell ``empty``: ``negative``, ``unknown`` or nothing."""
    if text.lower() not in (*EMPTY_MASKS, ""):
        raise UserError(
            f"{where}: the column empty holds {text!r}; write negative (looked at, nothing there), "
            "unknown, or leave it blank."
        )
    return text.lower()


def annotated(
    source: ImageSource,
    site: str,
    structures: Sequence[str],
    data: DataSettings,
    label_values: str,
    own: Own | None,
) -> tuple[str, ...] | None:
    """Which of ``structures`` the label of ``source`` tells of, in their order; None for all.

    ``data.annotates`` decides; else the manifest's column ``annotates``, already in ``source``;
    else, unless ``data.labels`` is set, the names in ``label_values``, its text for this image;
    else what the file lists, ``own`` (None: it cannot be read, or there is none). A structure that
    a file lists was looked at, drawn or not; one that it does not list was not. Without names it
    tells of those that have a value. The answer is empty where none of that is a structure
    (:func:`no_structure`).

    Raises:
        UserError: a name that the federation does not know, or a label that is said to tell of
            nothing.
    """
    if site in data.annotates:
        names, origin = data.annotates[site], f"data.annotates.{site}"
    elif source.annotates is not None:
        names, origin = source.annotates, f"the column annotates of {source.path}"
    elif label_values and data.labels is None:
        values = parse_label_values(label_values, source.path).values()
        names = tuple(name for name in values if name != IGNORE)
        origin = f"the label_values {label_values!r} of {source.label_path}"
    else:
        return _listed(source, structures, data, own)
    for name in names:
        if name not in structures:
            raise UserError(
                f"{origin}: no structure {name!r}; {nearest('nearest:', name, structures)}."
            )
    kept = tuple(name for name in structures if name in names)
    if not kept:
        raise UserError(
            f"{origin} names no structure; clear label_path where nothing is annotated."
        )
    return None if len(kept) == len(structures) else kept


def _listed(
    source: ImageSource, structures: Sequence[str], data: DataSettings, own: Own | None
) -> tuple[str, ...] | None:
    """Which of ``structures`` a label file itself lists, or has values for; None for all."""
    if own is None or not (own.names or data.labels):
        return None
    legend = legend_of(source, structures, data, "")
    classes = legend.classes(own.names)
    # A file may use a value that its own list lacks.
    values = {*own.names, *own.values} if own.names else classes
    told = {classes[value] for value in values if value in classes}
    kept = tuple(name for k, name in enumerate(structures) if k + 1 in told)
    return None if len(kept) == len(structures) else kept


def no_structure(source: ImageSource, names: Mapping[int, str]) -> FileFault:
    """The fault of a label file that tells of no structure of the federation; ``names`` are its
    own, if it has any."""
    called = listed(dict.fromkeys(map(repr, names.values())))
    return FileFault(
        "no-structure",
        source.label_path,
        f"names {called}, and no structure of the federation"
        if names
        else "does not name its values, and data.labels gives its structures by name alone",
        "add what it holds to data.labels, or clear its cell label_path; if a structure was looked "
        "for and is not there, say so in data.annotates or the column annotates",
    )


def annotated_classes(source: ImageSource, structures: Sequence[str]) -> tuple[int, ...] | None:
    """The class indices that the label of ``source`` tells of; None for all."""
    if source.annotates is None:
        return None
    return tuple(k + 1 for k, name in enumerate(structures) if name in source.annotates)


def never_shown(
    shown: Mapping[str, Collection[str]], annotates: Mapping[str, Collection[str] | None]
) -> dict[str, list[str]]:
    """By site, the structures that other sites' labels show and its own never do, although nothing
    says that it leaves them out: absent from its people, or not drawn there?

    ``shown`` maps a site to the structures in its labels, ``annotates`` to those it is said to
    annotate (None: all). Sites whose labels show nothing at all are left out.
    """
    everything = sorted(set().union(*shown.values()))
    found = {}
    for site, own in shown.items():
        said = annotates.get(site)
        missing = [
            name for name in everything if name not in own and (said is None or name in said)
        ]
        if own and missing:
            found[site] = missing
    return found


def legend_of(
    source: ImageSource, structures: Sequence[str], data: DataSettings, label_values: str
) -> Legend:
    """What the values in ``source``'s label file mean.

    ``data.labels`` decides; else ``label_values``, the manifest's text for this image; else the
    file's own names for its values, and in a file without any ``label 3`` is the value 3.

    Raises:
        LabelMapError: a name that the federation does not know.
    """
    index = {name: k + 1 for k, name in enumerate(structures)} | {BACKGROUND: 0, IGNORE: IGNORED}
    if (said := _said(data, label_values, source.path)) is None:
        numbered = {int(n[6:]): k for n, k in index.items() if re.fullmatch(r"label \d+", n)}
        return Legend(numbered, {fold(name): k for name, k in index.items()})
    for _, name in said:
        if name not in index:
            origin, way_out = (
                ("data.labels", "give it there")
                if data.labels is not None
                else (
                    f"the names of the values of {source.label_path}",
                    "set data.labels to the structures that every site labels",
                )
            )
            raise LabelMapError(f"{origin}: {name!r} is no structure of the federation; {way_out}.")
    return _legend(said, index)


def drawn_legend(data: DataSettings, label_values: str, where: str) -> Legend | None:
    """Which of a drawing's structures are meant, and which are one, before the federation's
    structures are known; None where nothing is said and all are meant."""
    if (said := _said(data, label_values, where)) is None:
        return None
    names = list(dict.fromkeys(name for _, name in said if name != BACKGROUND))
    return _legend(said, {BACKGROUND: 0} | {name: k + 1 for k, name in enumerate(names)})


def _said(
    data: DataSettings, label_values: str, where: str
) -> Sequence[tuple[int | str, str]] | None:
    """The structure of each value or name that ``data.labels``, or else the table, names."""
    if data.labels is not None:
        return [(value, name) for name, values in data.labels.items() for value in values]
    return list(parse_label_values(label_values, where).items()) if label_values else None


def _legend(said: Iterable[tuple[int | str, str]], index: Mapping[str, int]) -> Legend:
    values = {value: index[name] for value, name in said if isinstance(value, int)}
    return Legend(values, {fold(text): index[name] for text, name in said if isinstance(text, str)})


def to_classes(
    values: np.ndarray,
    mapping: Mapping[int, int],
    source: ImageSource,
    names: Mapping[int, str] | None = None,
) -> np.ndarray:
    """Turn label values (uint16) into class indices (uint8) of the same shape; ``names`` are what
    the file calls its values, for the sentence.

    Raises:
        LabelMapError: a value outside the map.
    """
    # A drawing may list what it does not draw under any number.
    mapping = {value: k for value, k in mapping.items() if 0 <= value <= 65535}
    known = np.zeros(65536, bool)
    table = np.zeros(65536, np.uint8)
    known[list(mapping)] = True
    table[list(mapping)] = list(mapping.values())
    if not (inside := known[values]).all():
        others = np.unique(values[~inside])
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise LabelMapError(
            f"{source.label_path} holds the value {called(int(others[0]), names or {})}{more}, "
            "which is in no structure; "
            "give it to one, or to background or ignore, in data.labels."
        )
    return table[values]


def called(value: int, names: Mapping[int, str]) -> str:
    """A value in a sentence, with the file's name for it."""
    return f"{value} ({names[value]!r})" if value in names else str(value)


def is_negative(source: ImageSource, data: DataSettings) -> bool:
    """Whether an empty mask says that somebody looked and nothing is there."""
    return (source.empty or data.empty_masks) == "negative"


def labelled_slices(values: np.ndarray, classes: np.ndarray, *, negative: bool) -> np.ndarray:
    """Which slices (S,) were looked at: of ``negative`` images all, else those with a value.

    By value, not by class: a slice whose only value is mapped to background was looked at. A slice
    of which every pixel is to be ignored tells nothing.
    """
    looked = np.ones(len(values), bool) if negative else np.any(values, axis=(1, 2))
    told: np.ndarray = looked & np.any(classes != IGNORED, axis=(1, 2))
    return told

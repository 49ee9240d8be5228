"""Which parts a label tells of, and what an empty one says.

A label may tell of some parts only; what it does not annotate is then unknown there, not absent.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from fedshift import UserError
from fedshift.sites.findings import FileFault, listed
from fedshift.sites.labels.base import Form, Own
from fedshift.sites.labels.meaning import parse_label_values
from fedshift.sites.settings import EMPTY_MASKS, IGNORE, DataSettings, nearest
from fedshift.sites.types import IGNORED, ImageSource


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
    form: Form,
    parts: Sequence[str],
    data: DataSettings,
    label_values: str,
    own: Own | None,
) -> tuple[str, ...] | None:
    """Which of ``parts`` the label of ``source`` tells of, in their order; None for all.

    ``data.annotates`` decides; else the manifest's column ``annotates``, already in ``source``;
    else, unless ``data.labels`` is set, the names in ``label_values``, its text for this image;
    else what the label itself tells of (:meth:`.base.Form.listed`) by what it says of itself,
    ``own`` (None: it cannot be read, or there is none). The answer is empty where none of that is a
    part (:func:`no_structure`).

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
        return form.listed(source, parts, data, own)
    for name in names:
        if name not in parts:
            raise UserError(
                f"{origin}: no {form.part} {name!r}; {nearest('nearest:', name, parts)}."
            )
    kept = tuple(name for name in parts if name in names)
    if not kept:
        raise UserError(
            f"{origin} names no {form.part}; clear the label's cell where nothing is annotated."
        )
    return None if len(kept) == len(parts) else kept


def annotated_classes(source: ImageSource, parts: Sequence[str]) -> tuple[int, ...] | None:
    """The parts, by number, that the label of ``source`` tells of; None for all."""
    if source.annotates is None:
        return None
    return tuple(k + 1 for k, name in enumerate(parts) if name in source.annotates)


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


def is_negative(source: ImageSource, data: DataSettings) -> bool:
    """Whether an empty mask says that somebody looked and nothing is there."""
    return (source.empty or data.empty_masks) == "negative"


def contradicts(form: Form, shown: Collection[int], told: Collection[int]) -> bool:
    """Whether a label that can show one part alone shows another (by number) than those it is said
    to tell of, ``told``."""
    return not form.together and bool({*shown} - {0, IGNORED, *told})


def contradiction(source: ImageSource, form: Form) -> FileFault:
    """The fault of a label that contradicts what is said of it (:func:`contradicts`)."""
    return FileFault(
        "not-annotated",
        source.path,
        f"has {form.told(source, [1], {})}, and its label is said to tell of "
        f"{listed(source.annotates or ())} alone",
        f"mend the {form.part}, or add it in data.annotates or the column annotates",
    )


def no_structure(
    source: ImageSource, names: Mapping[int, str], form: Form, data: DataSettings
) -> FileFault:
    """The fault of a label file that tells of no part of the federation; ``names`` are its own, if
    it has any."""
    called = listed(dict.fromkeys(map(repr, names.values())))
    return FileFault(
        "no-structure",
        source.label_path,
        f"names {called}, and no {form.part} of the federation"
        if names
        else "does not name its values, and data.labels gives its structures by name alone",
        f"add what it holds to data.labels, or {form.emptied(data)}; if a {form.part} was looked "
        "for and is not there, say so in data.annotates or the column annotates",
    )

"""Whether the names that label files give to their values fit what values are said to mean."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from fedshift.sites.labels.meaning import called
from fedshift.sites.legend import Legend
from fedshift.sites.names import fold
from fedshift.sites.settings import BACKGROUND, IGNORE
from fedshift.sites.types import IGNORED

ALIKE = 0.85
"""Names whose :class:`difflib.SequenceMatcher` ratio is above this may be one, mistyped."""


@dataclass(frozen=True)
class Named:
    """A label file, the names that it gives to values, and what values and names mean."""

    file: str
    names: Mapping[int, str]
    legend: Legend


Doubt = tuple[int, str, str]
"""The number of the file in question, the problem and the way out."""


def differing(
    files: Sequence[Named], structures: Sequence[str], labels: Mapping[str, Sequence[int | str]]
) -> Iterator[Doubt]:
    """Files whose name for a value speaks against the structure that the value is said to be.

    Numbers of segments and regions are given as they are drawn: one number may be the liver of one
    person and the heart of another. Told is a name that differs from another file's for the same
    structure (of several values: for the same value of it), is that of another structure, or
    stands beside names of the structure in ``labels`` and is none of them. A name that ``labels``
    gives is settled by it.
    """
    title = dict(enumerate(structures, 1)) | {0: BACKGROUND, IGNORED: IGNORE}
    class_of = {fold(name): k for k, name in title.items()}
    first: dict[tuple[int, int], tuple[str, str]] = {}
    for number, one in enumerate(files):
        values = Counter(one.legend.values.values())
        for value, name in sorted(one.names.items()):
            k = one.legend.values.get(value)
            if not value or k is None or fold(name) in one.legend.names:
                continue
            usual, file = first.setdefault((k, value if values[k] > 1 else 0), (name, one.file))
            texts = [text for text in labels.get(title[k], ()) if isinstance(text, str)]
            calls = f"calls the value {value} {name!r}"
            if fold(usual) != fold(name):
                yield (
                    number,
                    f"{calls}, {file} calls it {usual!r}, and both would be {title[k]!r}",
                    "give names instead of the value, "
                    f"'data.labels={{{title[k]}: [{usual}, ...], ...}}'",
                )
            elif texts or class_of.get(fold(name), k) != k:
                yield (
                    number,
                    f"{calls}, and would be {title[k]!r} by its value",
                    f"give the name {name!r} in data.labels, to {title[k]}, to another structure, "
                    "or to background",
                )


def look_alikes(
    files: Sequence[Named],
    structures: Sequence[str],
    labels: Mapping[str, Sequence[int | str]] | None,
    rows: Mapping[str, Sequence[str]],
) -> Iterator[Doubt]:
    """Names that are nearly alike and count as different: mistyped, or two structures?

    Without ``labels`` names are structures: those of the table's ``rows`` by label file where it
    has any, else the files' own. With ``labels`` a file's name that they lack is held against
    theirs. Names that one file has side by side are two structures.
    """
    lists = [list(rows.get(one.file, ()) if rows else one.names.values()) for one in files]
    together = {
        frozenset(pair)
        for names in lists
        for pair in combinations(sorted({fold(name) for name in names}), 2)
    }

    def may_be_one(one: str, other: str) -> bool:
        return frozenset((one, other)) not in together and (one == other or _alike(one, other))

    where: dict[str, tuple[int, str]] = {}
    if labels is None:
        for number, names in enumerate(lists):
            for name in names:
                where.setdefault(fold(name), (number, name))
        for (one, (home, first)), (other, (number, name)) in combinations(where.items(), 2):
            if may_be_one(one, other):
                yield (
                    number,
                    f"names {name!r} and {files[home].file} names {first!r}, which count as two "
                    "structures",
                    "spell it alike in label_values, or give both names to one in data.labels",
                )
        return
    texts = {fold(name): name for name in structures}
    for values in labels.values():
        texts |= {fold(text): text for text in values if isinstance(text, str)}
    for number, one_file in enumerate(files):
        meant = one_file.legend.classes(one_file.names)
        for value, name in one_file.names.items():
            if value not in meant:
                where.setdefault(fold(name), (number, name))
    for one, (number, name) in where.items():
        if near := [text for other, text in texts.items() if may_be_one(one, other)]:
            yield (
                number,
                f"names {name!r}, which data.labels does not, though it names {near[0]!r}",
                f"give {name!r} there, to the same structure, to another, or to background",
            )


def twice(one: Named) -> Iterator[str]:
    """Names under which one file has several values of a structure, in words."""
    values: dict[str, list[int]] = {}
    meant = one.legend.classes(one.names)
    for value, name in sorted(one.names.items()):
        if meant.get(value):
            values.setdefault(fold(name), []).append(value)
    for numbers in values.values():
        if len(numbers) > 1:
            yield " and ".join(called(value, one.names) for value in numbers[:3])


def _alike(one: str, other: str) -> bool:
    # L1 and L2, Segment_1 and Segment_2: the number is the name.
    if re.sub(r"\d+", "0", one) == re.sub(r"\d+", "0", other):
        return False
    matcher = difflib.SequenceMatcher(None, one, other, autojunk=False)
    return matcher.real_quick_ratio() > ALIKE and matcher.ratio() > ALIKE

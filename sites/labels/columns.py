"""What the columns of a table of points or boxes say, and which may say it under another name.

A table may have columns for other readers, too. One that nobody reads although its name may say
what a form looks for is asked about: passed over, it would leave out a landmark or make all classes
one, and no figure would show it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

from fedshift import UserError
from fedshift.sites.labels.table import CLASS, NAME, PATH, LabelTable
from fedshift.sites.names import letters
from fedshift.sites.settings import COLUMNS

CORNERS = ("x1", "y1", "x2", "y2")

_CLASSES = (
    *("class", "classes", "cls", "label", "labels", "category", "categories"),
    *("type", "types", "kind", "kinds", "name", "names"),
)
"""Words by which people call a column of classes; also nearly so, mistyped."""
_WHICH = r"ids?|names?|index|idx|no|nr|num|number|code|text|title"
"""What stands behind such a word: ``category_id``, ``classname``."""
_SIZES = re.compile(r"(?:b?box)?(?:w|h|width|height)|[xy](?:[12]|min|max)")
_OF_THE_IMAGE = re.compile(
    r"(?:pixels?|voxels?|images?|slices?|grid|volume|original|per|mm|cm|um|px|in"
    r"|spacings?|resolution|scale|scaling|size|shape|origin|offset|direction|orientation|position"
    r"|dimensions?|dims?|fov|extent|zoom|factor|pad|padding|crop"
    # Columns of manifests and tables of labels, which joins of tables end in _x and _y, too.
    rf"|{'|'.join(sorted({letters(name) for name in (*COLUMNS, CLASS, NAME, PATH)}))})+"
)
"""Of what an image has, not a person, as far as letters go."""


def is_flat(table: LabelTable) -> bool:
    """Whether a row is a point, by columns x and y."""
    return {"x", "y"} <= {*table.columns}


def wide_names(table: LabelTable) -> tuple[str, ...]:
    """The names of points that have columns ``NAME_x`` and ``NAME_y``."""
    return tuple(name for name in _pairs(table) if not _OF_THE_IMAGE.fullmatch(letters(name)))


def image_names(table: LabelTable) -> tuple[str, ...]:
    """What has columns ``NAME_x`` and ``NAME_y`` and is called as what an image has, too."""
    return tuple(name for name in _pairs(table) if _OF_THE_IMAGE.fullmatch(letters(name)))


def classes_in(table: LabelTable, default: str) -> tuple[str, ...]:
    """The names in a table's column ``class``, sorted; ``default`` where it has none.

    Raises :class:`fedshift.UserError` where another column may hold them."""
    if CLASS in table.columns:
        return tuple(sorted({*table.names[CLASS]} - {""}))
    for column in table.columns:
        if _may_be_classes(column):
            raise UserError(
                f"{table.file} has no column {CLASS!r}, and {column!r} may be meant: rename it to "
                f"{CLASS}, or take it out where all are of one class."
            )
    return (default,)


def check_pairs(table: LabelTable) -> None:
    """Raise :class:`fedshift.UserError` for a column that may be a coordinate of a landmark and is
    in no pair ``NAME_x`` and ``NAME_y``."""
    read = {f"{name}_{axis}" for name in _pairs(table) for axis in "xyz"} | {"z", PATH, CLASS, NAME}
    for column in table.columns:
        if column in read:
            continue
        words = _words(column)
        axis = next((word for word in reversed(words) if word in ("x", "y", "z")), None)
        if axis is None and not any(letters(one) in {*_turned(column)} for one in table.columns):
            continue
        raise UserError(
            f"{table.file} has the column {column!r}, which is in no pair NAME_x and NAME_y and "
            "would not be read: rename the two of its landmark, or, if it is no coordinate, rename "
            "it without x, y or z or take it out."
        )


def check_sizes(table: LabelTable) -> None:
    """Raise :class:`fedshift.UserError` for columns of boxes, such as a width, beside x and y,
    which may then be a corner."""
    for column in table.columns if is_flat(table) else ():
        if _SIZES.fullmatch(letters(column)):
            raise UserError(
                f"{table.file} has the columns x, y and {column!r}: boxes, or points beside "
                "something else? Write boxes as x1, y1, x2 and y2 (x1 + width, y1 + height) alone, "
                f"or rename {column!r}."
            )


def _pairs(table: LabelTable) -> tuple[str, ...]:
    every = (text[:-2] for text in table.columns if text.endswith("_x"))
    return tuple(name for name in every if f"{name}_y" in table.columns)


def _words(column: str) -> list[str]:
    """The words of a column's name, also those of camelCase, in lower case."""
    parts = re.split(r"[\W_]+|(?<=[a-z0-9])(?=[A-Z])", column)
    return [part.casefold() for part in parts if part]


def _turned(column: str) -> Iterator[str]:
    """What the other coordinate would be called, were an x or y of ``column`` its own: ``ay`` of
    ``ax``."""
    text = letters(column)
    for place, mark in enumerate(text):
        if mark in "xy":
            yield f"{text[:place]}{'y' if mark == 'x' else 'x'}{text[place + 1 :]}"


def _may_be_classes(column: str) -> bool:
    words = _words(column)
    while len(words) > 1 and re.fullmatch(_WHICH, words[-1]):
        words.pop()
    last = re.sub(rf"(?<=.)(?:{_WHICH})$", "", words[-1]) if words else ""
    return bool(difflib.get_close_matches(last, _CLASSES, n=1, cutoff=0.8))

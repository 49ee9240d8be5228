"""The config node ``data``: where the images are and how they are prepared."""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fedshift import UserError
from fedshift.sites.findings import ALL, CODES
from fedshift.sites.names import fold, tidy
from fedshift.sites.types import SPLITS, Split

REQUIRED_COLUMNS = ("path", "site", "subject")
LABEL_COLUMNS = (
    "label_path",
    "points_path",
    "boxes_path",
    "category",
    "instances_path",
    "pair_path",
    "graph_path",
)
"""Where a form of label is found (:mod:`.labels`)."""
COLUMNS = (
    *REQUIRED_COLUMNS,
    *LABEL_COLUMNS,
    "pair_id",
    "vendor",
    "scanner",
    "spacing_mm",
    "session",
    "label_values",
    "annotates",
    "empty",
    "modality",
)
BACKGROUND = "background"
IGNORE = "ignore"
RESERVED = (BACKGROUND, IGNORE)
"""Names in ``data.labels`` that are no structures."""
MOST_STRUCTURES = 254
"""Classes are a byte: 0 is the background, 255 is ignored."""
EMPTY_MASKS = ("unknown", "negative")
POINTS_IN = ("pixel", "ras", "lps")
"""Pixels of the file, or mm in the patient: to the right, front and top, or as DICOM counts."""
NORMALISATIONS = ("percentile", "zscore", "ct", "none")
AUTO = "auto"
"""The value of a setting that is decided for the whole federation (:mod:`.plan`)."""


PLANNED = ("spacing_mm", "size", "slice_axis", "normalise", "window")
"""What can be ``auto``. A window is planned where ``normalise`` is or becomes ``ct``."""


OF_A_RUN = (
    *PLANNED,
    "normalise_pair",
    "labels",
    "split",
    "split_gap",
    "unseen_sites",
    "unlabelled_sites",
)
"""What all sites of a run must have alike, or which of them do what in it. All other settings are a
site's own: where its images are, and how its own tables and labels are to be read."""


def default_cache() -> Path:
    """The cache folder when the config names none: ``$FEDSHIFT_CACHE`` or ``~/.cache/fedshift``."""
    return Path(os.environ.get("FEDSHIFT_CACHE") or "~/.cache/fedshift").expanduser()


@dataclass(frozen=True)
class DataSettings:
    """How a federation's images are found, prepared and split; one field a key of ``data``.

    ``labels`` maps a part (structure, landmark, class) to its values in the label files, or to the
    names that files give their values; its order is the order of the classes; the reserved name
    ``background`` takes those that count as background, ``ignore`` those that are neither trained
    on nor scored. ``annotates`` maps a site to the parts that its labels tell of. ``size`` is the
    network grid's rows and columns; spacings are in-plane, in mm.
    """

    manifest: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    site_column: str | None = None
    site_pattern: str | None = None
    sites: tuple[str, ...] = ()
    unseen_sites: tuple[str, ...] = ()
    unlabelled_sites: tuple[str, ...] = ()
    labels: Mapping[str, tuple[int | str, ...]] | None = None
    annotates: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    empty_masks: str = "unknown"
    label_table: str | None = None
    """One table of points, boxes or pairs for all images, in place of a column."""
    points_in: str = "pixel"
    normalise_pair: str | None = None
    """How paired images are normalised; None: as images are."""
    spacing_mm: float | None = None
    default_spacing_mm: float | None = None
    size: int = 128
    slice_axis: int | None = None
    """An axis of the canonical orientation; None: each image's thickest, whatever the others'."""
    normalise: str = "percentile"
    window: tuple[float, float] | None = None
    """What ``normalise=ct`` scales to 0 and 1, in Hounsfield units."""
    split: Mapping[Split, float] = field(
        default_factory=lambda: {"train": 0.6, "val": 0.2, "test": 0.2}
    )
    split_gap: int = 1
    planned: Mapping[str, str] = field(default_factory=dict)
    """What was ``auto`` and is set above, and why it is what it is; written by a run."""
    accept: tuple[str, ...] = ()
    """Codes of the doctor's errors that are no reason to stop, or ``all``."""
    cache: Path = field(default_factory=default_cache)
    auto: frozenset[str] = frozenset()
    """The settings that the config leaves to be planned: no key of its own."""
    form: str = "mask"
    """The form of label that is read (:mod:`.labels`): the task's, and no key of its own."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any], form: str = "mask") -> DataSettings:
        """Check the config node ``data`` of a task that needs ``form``; absent keys take their
        defaults.

        Raises:
            UserError: an unknown key, or a value of the wrong type or range; it names the key.
        """
        known = [f.name for f in fields(cls) if f.name not in (AUTO, "form")]
        for key in config:
            if key not in known:
                raise UserError(
                    f"data.{key} is not a setting; {nearest('did you mean', key, known)}."
                )
        auto = {key for key in PLANNED if config.get(key) == AUTO}
        checked: dict[str, Any] = {
            key: _CHECKS[key](f"data.{key}", value)
            for key, value in config.items()
            if key not in auto
        }
        if checked.get("normalise") == "ct" and checked.get("window") is None:
            auto.add("window")
        elif checked.get("normalise_pair") == "ct" and checked.get("window") is None:
            raise UserError(
                "data.normalise_pair=ct needs data.window=[LOW, HIGH] in Hounsfield units."
            )
        return cls(**checked, auto=frozenset(auto), form=form)


_MANY = 40
"""Of more names than this, such as sites, a sentence lists three."""


def nearest(prefix: str, name: str, known: Iterable[str]) -> str:
    """Say which of ``known`` is meant by ``name``: the nearest ones, or else all of them, of very
    many some."""
    names = sorted(known)
    close = difflib.get_close_matches(str(name), names, n=3, cutoff=0.6)
    if close:
        return f"{prefix} {' or '.join(close)}"
    if len(names) > _MANY:
        return f"there are {len(names)}, such as {', '.join(names[:3])}"
    return f"there are {', '.join(names)}"


def _text(key: str, value: Any) -> str | None:
    if value is None or (isinstance(value, str) and value):
        return value
    raise UserError(f"{key} must be a text or null, not {value!r}.")


def _column(key: str, value: Any) -> str | None:
    text = _text(key, value)
    return None if text is None else tidy(text)


def _names(key: str, value: Any) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, Iterable) or isinstance(names, Mapping):
        raise UserError(f"{key} must be a list of site names, not {value!r}.")
    # An unquoted numeric site name in YAML arrives as a number; its text is the name.
    return tuple(tidy(str(name)) for name in names)


def _columns(key: str, value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise UserError(f"{key} must map our names to the table's columns, not {value!r}.")
    for name, column in value.items():
        if name not in COLUMNS:
            raise UserError(
                f"{key}.{name} is not a column we read; {nearest('did you mean', name, COLUMNS)}."
            )
        if not isinstance(column, str) or not column:
            raise UserError(f"{key}.{name} must be the name of a column, not {column!r}.")
    return {name: tidy(column) for name, column in value.items()}


def _pattern(key: str, value: Any) -> str | None:
    text = _text(key, value)
    if text is None:
        return None
    text = unicodedata.normalize("NFC", text)
    try:
        groups = re.compile(text).groups
    except re.error as error:
        raise UserError(f"{key} is not a regular expression ({error}): {text!r}.") from None
    if groups < 1:
        raise UserError(f"{key} must have a group in parentheses, which names the site: {text!r}.")
    return text


def _labels(key: str, value: Any) -> dict[str, tuple[int | str, ...]] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping) or not set(value) - set(RESERVED):
        raise UserError(f"{key} must map each structure to its value or values, not {value!r}.")
    owner: dict[int | str, str] = {}
    labels = {}
    for name, given in value.items():
        parts = given if isinstance(given, list | tuple) else (given,)
        values = tuple(one for part in parts for one in _values(part))
        lowest = 0 if name == BACKGROUND else 1
        for one in values:
            named = isinstance(one, str) and fold(one)
            if not named and not (_is_integer(one) and lowest <= one <= 65535):
                quoted = f", as in \"{key}={{{name}: '{one}'}}\"" if _is_integer(one) else ""
                raise UserError(
                    f"{key}.{name} must be whole numbers from {lowest} to 65535, or the names that "
                    f"files give them (numbers that are names in quotation marks{quoted}), not "
                    f"{given!r}."
                )
            if owner.setdefault(fold(one) if named else one, name) != name:
                what = "name" if named else "value"
                both = f"{owner[fold(one) if named else one]} and {name}"
                raise UserError(f"{key} gives the {what} {one} to both {both}.")
        if not values:
            raise UserError(f"{key}.{name} must name at least one value.")
        labels[str(name)] = values
    check_count(tuple(name for name in labels if name not in RESERVED), key)
    return labels


def check_count(structures: tuple[str, ...], origin: str) -> None:
    """Raise ``UserError`` where ``origin`` names more structures than classes can be told apart."""
    if len(structures) > MOST_STRUCTURES:
        raise UserError(
            f"{origin}: {len(structures)} structures ({', '.join(structures[:3])}, ...), and at "
            f"most {MOST_STRUCTURES} can be learnt. Where every value is one object (instances), "
            "which are not learnt one by one, give all of them to one structure: "
            "'data.labels={NAME: 1-65535}'."
        )


def _values(part: Any) -> Iterable[Any]:
    """``"1-300"`` as its whole numbers, another text as a name, any other value by itself."""
    if not isinstance(part, str):
        return (part,)
    match = re.fullmatch(r"\s*(\d+)\s*-\s*(\d+)\s*", part)
    if match is None or not int(match[1]) <= int(match[2]) <= 65535:
        return (tidy(part),)
    return range(int(match[1]), int(match[2]) + 1)


def _annotates(key: str, value: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, Mapping):
        raise UserError(f"{key} must map a site to the structures it annotates, not {value!r}.")
    found = {}
    for site, given in value.items():
        names = (given,) if isinstance(given, str) else given
        if not isinstance(names, list | tuple) or not names:
            raise UserError(
                f"{key}.{site} must list the structures that the site annotates, not {given!r}; "
                "a site without any labels is named in data.unlabelled_sites."
            )
        found[str(site)] = tuple(str(name) for name in names)
    return found


def _one_of(known: tuple[str, ...]) -> Callable[[str, Any], str]:
    def check(key: str, value: Any) -> str:
        if value not in known:
            raise UserError(f"{key} must be {' or '.join(known)}, not {value!r}.")
        return str(value)

    return check


def _normalise_pair(key: str, value: Any) -> str | None:
    return None if value is None else _normalise(key, value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_NANOMETRE, _KILOMETRE = 1e-6, 1e6
"""In mm; between them lies every image."""
_MOST_UNITS, _NARROWEST = 1e6, 0.1
"""Of a window, in Hounsfield units: a narrower one is all edge."""


def _spacing(key: str, value: Any) -> float | None:
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not _NANOMETRE <= value <= _KILOMETRE:
        raise UserError(
            f"{key} must be a length in mm, from {_NANOMETRE:g} to {_KILOMETRE:g}, or null, not "
            f"{value!r}."
        )
    return float(value)


def _size(key: str, value: Any) -> int:
    if not _is_integer(value) or not 8 <= value <= 4096:
        raise UserError(f"{key} must be a whole number of pixels from 8 to 4096, not {value!r}.")
    return int(value)


def _slice_axis(key: str, value: Any) -> int | None:
    if value is None:
        return None
    if not _is_integer(value) or value not in (0, 1, 2):
        raise UserError(f"{key} must be auto, 0, 1 or 2, not {value!r}.")
    return int(value)


def _normalise(key: str, value: Any) -> str:
    if value not in NORMALISATIONS:
        raise UserError(f"{key} must be one of {', '.join(NORMALISATIONS)}, not {value!r}.")
    return str(value)


def _window(key: str, value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    pair = tuple(value) if isinstance(value, list | tuple) else ()
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in pair)
    if len(pair) != 2 or not numbers or not -_MOST_UNITS <= pair[0] < pair[1] <= _MOST_UNITS:
        raise UserError(f"{key} must be [LOW, HIGH] in Hounsfield units or null, not {value!r}.")
    if pair[1] - pair[0] < _NARROWEST:
        raise UserError(
            f"{key} must be at least {_NARROWEST} Hounsfield units wide, not {value!r}."
        )
    return float(pair[0]), float(pair[1])


def _planned(key: str, value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping) or not set(value) <= set(PLANNED):
        raise UserError(f"{key} is written by a run, never by hand; leave it out.")
    return {str(name): str(why) for name, why in value.items()}


def _accept(key: str, value: Any) -> tuple[str, ...]:
    codes = _names(key, value)
    for code in codes:
        if code != ALL and code not in CODES:
            raise UserError(f"{key}: no finding {code!r}; {nearest('nearest:', code, CODES)}.")
    return codes


def _split(key: str, value: Any) -> dict[Split, float]:
    if not isinstance(value, Mapping) or set(value) != set(SPLITS):
        raise UserError(f"{key} must give the fractions train, val and test, not {value!r}.")
    fractions: dict[Split, float] = {}
    for name in SPLITS:
        number = value[name]
        if not isinstance(number, int | float) or isinstance(number, bool) or not 0 <= number < 1:
            raise UserError(f"{key}.{name} must be a fraction from 0 to below 1, not {number!r}.")
        if number == 0 and name != "val":
            raise UserError(
                f"{key}.{name} is 0; only val may be, as every site trains and is tested."
            )
        fractions[name] = float(number)
    if abs(sum(fractions.values()) - 1) > 1e-6:
        raise UserError(f"{key} must add up to 1, not {sum(fractions.values()):g}.")
    return fractions


def _gap(key: str, value: Any) -> int:
    if not _is_integer(value) or not 0 <= value <= 100:
        raise UserError(f"{key} must be a whole number of slices from 0 to 100, not {value!r}.")
    return int(value)


def _cache(key: str, value: Any) -> Path:
    if isinstance(value, Path):
        return value
    text = _text(key, value)
    return default_cache() if text is None else Path(text).expanduser()


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "manifest": _text,
    "columns": _columns,
    "site_column": _column,
    "site_pattern": _pattern,
    "sites": _names,
    "unseen_sites": _names,
    "unlabelled_sites": _names,
    "labels": _labels,
    "annotates": _annotates,
    "empty_masks": _one_of(EMPTY_MASKS),
    "label_table": _text,
    "points_in": _one_of(POINTS_IN),
    "normalise_pair": _normalise_pair,
    "spacing_mm": _spacing,
    "default_spacing_mm": _spacing,
    "size": _size,
    "slice_axis": _slice_axis,
    "normalise": _normalise,
    "window": _window,
    "planned": _planned,
    "accept": _accept,
    "split": _split,
    "split_gap": _gap,
    "cache": _cache,
}

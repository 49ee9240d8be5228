"""What the values of a label file mean: from the config, the manifest, or the files themselves."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from fedshift import UserError
from fedshift.sites.settings import BACKGROUND, DataSettings
from fedshift.sites.types import ImageSource


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
        if value != 0 and name.lower() not in ("bg", BACKGROUND):
            names[value] = name
    return names


def class_of_value(
    source: ImageSource, structures: Sequence[str], data: DataSettings, label_values: str
) -> dict[int, int]:
    """Value in ``source``'s label file -> class index; value 0 is always the background.

    ``data.labels`` decides; else ``label_values``, the manifest's text for this image; else
    structures are called ``label 3`` after their value.

    Raises:
        LabelMapError: a structure of the federation has no value here, or the reverse.
    """
    if data.labels is not None:
        given = [(value, name) for name, values in data.labels.items() for value in values]
        origin, way_out = "data.labels", "give it there"
    elif label_values:
        given = list(parse_label_values(label_values, source.path).items())
        origin = f"the label_values {label_values!r} of {source.label_path}"
        way_out = "set data.labels to the structures that every site labels"
    else:
        given = [(int(n[6:]), n) for n in structures if re.fullmatch(r"label \d+", n)]
        origin, way_out = f"the label file {source.label_path}", "set data.labels"
    index = {name: k + 1 for k, name in enumerate(structures)} | {BACKGROUND: 0}
    for name in structures:
        if name not in {other for _, other in given}:
            raise LabelMapError(f"the structure {name!r} has no value in {origin}; {way_out}.")
    for _, name in given:
        if name not in index:
            raise LabelMapError(
                f"{origin} names {name!r}, which the federation does not label; {way_out}."
            )
    return {0: 0} | {value: index[name] for value, name in given}


def to_classes(values: np.ndarray, mapping: Mapping[int, int], source: ImageSource) -> np.ndarray:
    """Turn label values (uint16) into class indices (uint8) of the same shape.

    Raises:
        LabelMapError: a value outside the map.
    """
    outside = 255
    table = np.full(65536, outside, np.uint8)
    table[list(mapping)] = list(mapping.values())
    classes = table[values]
    if classes.max() == outside:
        value = int(values[classes == outside][0])
        raise LabelMapError(
            f"{source.label_path} holds the value {value}, which is in no structure; give it to "
            "one, or to background, in data.labels."
        )
    return classes

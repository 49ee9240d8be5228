"""What values and names in label files mean.

They are said by the config, the manifest, or the files themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from fedshift import UserError
from fedshift.sites.legend import Legend
from fedshift.sites.names import fold
from fedshift.sites.settings import BACKGROUND, IGNORE, DataSettings
from fedshift.sites.types import IGNORED, ImageSource


class LabelMapError(UserError):
    """A label file and the map of values disagree: the config is wrong, not one image."""


def parse_label_values(text: str, where: str) -> dict[int, str]:
    """Read ``0=bg,1=cord white matter(cord minus GM)`` as value -> structure, without brackets.

    Value 0 and the names ``bg`` and ``background`` are the background, left out of the answer.
    """
    names: dict[int, str] = {}
    for part in re.split(r"[,;]", re.sub(r"\([^)]*\)", "", text)):
        match = re.fullmatch(r"\s*([0-9]+)\s*[=:]\s*(\S.*?)\s*", part)
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


def called(value: int, names: Mapping[int, str]) -> str:
    """A value in a sentence, with the file's name for it."""
    return f"{value} ({names[value]!r})" if value in names else str(value)

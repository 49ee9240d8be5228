"""What a layout is given and what it gives back: options, rows, and what was noticed."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedshift import UserError
from fedshift.sites.adopt.files import Tree

GROUPS = ("site", "subject", "session", "vendor", "scanner")
"""The columns that ``--pattern`` may fill."""


@dataclass(frozen=True)
class Options:
    """What the user says about a folder; each wins over what the files say.

    ``site`` names every image's site. ``subject`` (its first group, or all it matches) and
    ``pattern`` (its named groups, of :data:`GROUPS`) are searched in an image's path relative to
    the folder. ``sequence`` and ``label`` choose among several images or labels of one scan.
    ``key`` makes pseudonyms of patients' numbers. In ``links``, where given, DICOM series whose
    files lie among others get folders of links to them.
    """

    site: str = ""
    subject: re.Pattern[str] | None = None
    pattern: re.Pattern[str] | None = None
    sequence: str = ""
    label: str = ""
    key: bytes = b""
    links: Path | None = None

    @classmethod
    def of(
        cls,
        site: str | None = None,
        subject: str | None = None,
        pattern: str | None = None,
        sequence: str | None = None,
        label: str | None = None,
        key: bytes = b"",
        links: Path | None = None,
    ) -> Options:
        """Check the texts of the command line; raise ``UserError`` for one that cannot be meant."""
        by_pattern = _expression("--pattern", pattern)
        groups = set(by_pattern.groupindex) if by_pattern else set()
        if by_pattern and (not groups or groups - set(GROUPS)):
            raise UserError(
                f"--pattern must hold named groups such as (?P<site>[^/]+), of {', '.join(GROUPS)},"
                f" not {pattern!r}."
            )
        for name, given in (("site", site), ("subject", subject)):
            if given is not None and name in groups:
                raise UserError(f"--{name} and --pattern both give the {name}; give it once.")
        return cls(
            (site or "").strip(),
            _expression("--subject", subject),
            by_pattern,
            (sequence or "").strip(),
            (label or "").strip(),
            key,
            links,
        )


def _expression(option: str, text: str | None) -> re.Pattern[str] | None:
    if text is None:
        return None
    try:
        return re.compile(text)
    except re.error as error:
        raise UserError(f"{option} is not a regular expression ({error}): {text!r}.") from None


@dataclass
class Row:
    """A row to be: the cells that the files themselves fill, empty where they say nothing.

    ``extra`` holds further columns, such as ``sequence``, ``modality``, ``field_T`` and ``kernel``.
    ``lies_at`` is where the files lie, if ``image`` is a folder of links to them: patterns are
    searched there.
    """

    image: Path
    label: Path | None = None
    subject: str = ""
    site: str = ""
    session: str = ""
    vendor: str = ""
    scanner: str = ""
    spacing_mm: str = ""
    label_values: str = ""
    extra: dict[str, str] = field(default_factory=dict)
    lies_at: Path | None = None


@dataclass
class Adopted:
    """A folder's rows, where each column came from, and what the user must know.

    ``guesses`` and ``left_out`` map a reason, in words, to the names it holds for.
    ``whole`` says that the layout looked into every file, so that none is left to be named.
    ``pseudonyms`` are those made with :attr:`Options.key`. ``links`` are folders to be made, each
    with links to the files of one series.
    """

    layout: str
    rows: list[Row] = field(default_factory=list)
    origin: dict[str, str] = field(default_factory=dict)
    guesses: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    notes: list[str] = field(default_factory=list)
    whole: bool = False
    pseudonyms: set[str] = field(default_factory=set)
    links: dict[Path, list[Path]] = field(default_factory=dict)

    @property
    def keyed(self) -> bool:
        """Whether the table holds pseudonyms, so that their key must be kept."""
        return any(row.subject in self.pseudonyms for row in self.rows)


@dataclass(frozen=True)
class Layout:
    """A way in which people lay out images: ``detect`` looks at names, ``adopt`` makes rows."""

    name: str
    title: str
    detect: Callable[[Tree], bool]
    adopt: Callable[[Tree, Options], Adopted]


def three(names: Sequence[str]) -> str:
    """The first three names, whatever characters they hold, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    shown = (
        "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(name)) for name in names[:3]
    )
    return ", ".join(shown) + more


def counted(what: str, names: Sequence[str]) -> str:
    """``what``, how many they are, and three of them."""
    return f"{what}: {len(names)} ({three(names)})"


def choose(option: str, what: str, names: Mapping[str, str], given: str) -> set[str]:
    """Which of ``names`` (each with a count, in words) the user means by ``option``.

    One name alone needs no choice. ``given`` is a name, whatever its case, or else a regular
    expression that a name matches from end to end.

    Raises:
        UserError: several names and nothing given, or nothing that it means.
    """
    if not given and len(names) <= 1:
        return set(names)
    listed = ", ".join(f"{name} ({count})" for name, count in list(names.items())[:12])
    listed += f" and {len(names) - 12} more" if len(names) > 12 else ""
    if not given:
        raise UserError(f"there are {len(names)} {what}: {listed}; pick one with {option} NAME.")
    found = {name for name in names if name.lower() == given.lower()}
    if not found:
        try:
            found = {name for name in names if re.fullmatch(given, name, re.I)}
        except re.error:
            found = set()
    if not found:
        raise UserError(f"{option} {given!r} is none of the {what}: {listed}.")
    return found


def values_text(names: Mapping[int, str]) -> str:
    """The cell ``label_values`` for value -> name; commas, brackets and the like become spaces."""
    cells = {0: "background"}
    for value, name in sorted(names.items()):
        if value == 0:
            continue
        safe = " ".join(re.sub(r"[,;:=()\t\r\n\"]+", " ", name).split()) or f"label {value}"
        cells[value] = f"{safe} {value}" if safe in cells.values() else safe
    return ",".join(f"{value}={name}" for value, name in cells.items())


def one_of(row: Mapping[str, str], columns: Collection[str]) -> str:
    """The first filled cell among ``columns``, whatever the case of the row's own names."""
    lower = {name.lower(): cell for name, cell in row.items()}
    for column in columns:
        cell = lower.get(column.lower(), "")
        if cell and cell.lower() not in ("n/a", "na", "nan", "none"):
            return cell
    return ""

"""What a task measures, and what its readers must know of it.

A site says it with the method's networks, before the first round; server, tables, report,
comparison and advice know of a task only this.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from fedshift.protocol.tables import CASE_KEYS, SUMMARY_COLUMNS, SUMMARY_KEYS

_NAME = re.compile("[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Measure:
    """A number that tells how good a prediction is, or describes it.

    ``name`` is its column of ``cases.csv`` and its value of ``metric`` in ``cross_site.csv``;
    ``title``, as in a sentence ("Dice", "radial error"), ``unit`` ("mm"; "" for a plain number) and
    ``note``, a sentence on what it tells where the title does not, are for readers. ``better`` says
    which values are, "" where neither, as of a volume. ``low`` and ``high`` bound its values.

    ``listed`` measures are columns of ``cases.csv``, ``summarised`` ones have rows in
    ``cross_site.csv``. A ``sparse`` measure is nan for the cases that do not have it and summarised
    over the others, with a bootstrap of its own. A ``whole`` measure, such as an average precision,
    is of a split: no case has it, so that it is never listed.

    Raises ``ValueError`` where these do not fit each other.
    """

    name: str
    title: str
    better: Literal["higher", "lower", ""] = ""
    unit: str = ""
    low: float = -math.inf
    high: float = math.inf
    listed: bool = True
    summarised: bool = True
    sparse: bool = False
    whole: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"a measure's name is lower-case letters, digits and _: {self.name!r}")
        if self.better not in {"higher", "lower", ""}:
            raise ValueError(f"{self.name}: better is higher, lower or empty, not {self.better!r}")
        if not self.low < self.high:
            raise ValueError(f"{self.name} lies between {self.low} and {self.high}: low < high")

    @property
    def ratio(self) -> bool:
        """Whether it goes from 0 to 1 and one end is the better one."""
        return (self.low, self.high) == (0, 1) and self.better != ""

    @property
    def sign(self) -> Literal[1, -1]:
        """By what to multiply it so that more is better; ``ValueError`` where neither is."""
        if not self.better:
            raise ValueError(f"neither more nor less {self.name} is better")
        return 1 if self.better == "higher" else -1

    @property
    def label(self) -> str:
        """Title and unit, as an axis or a column says them."""
        unit = f" ({self.unit})" if self.unit else ""
        return f"{self.title[:1].upper()}{self.title[1:]}{unit}"

    @property
    def worsening(self) -> str:
        """How it changes for the worse, as the end of a sentence: "drop in Dice"."""
        return f"{'drop' if self.sign > 0 else 'rise'} in {self.title}"

    def cell(self, value: float) -> str:
        """``value`` as a table shows it: two decimals of what has a unit, three of a plain number,
        and of what is no ratio as many more as it takes to see two digits; a dash for nan."""
        if math.isnan(value):
            return "–"
        decimals = 2 if self.unit else 3
        # Far below any unit's use lies what rounding leaves of a difference of 0.
        if not self.ratio and 1e-9 <= abs(value) < 1:
            decimals = max(decimals, 1 - math.floor(math.log10(abs(value))))
        return f"{value:.{decimals}f}"

    def said(self, value: float) -> str:
        """``value`` with its unit, as in a sentence."""
        return f"{self.cell(value)} {self.unit}".rstrip()

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, without what is at its default: an infinite bound is no JSON."""
        default = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in asdict(self).items() if value != default[name]}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Measure:
        """Undo :meth:`to_json`."""
        return cls(**told)


@dataclass(frozen=True)
class TaskCard:
    """What a task is to those who only read its numbers.

    ``title`` is its name in a sentence. ``part`` is the column that tells the ``parts`` of a label
    apart ("structure"); "" where a case has one row. Of ``measures`` the first is the headline, the
    second is shown beside it. ``failure`` says what a case's ``failed`` = 1 means, as the end of a
    sentence ("exactly one of the two masks is empty").

    Raises ``ValueError`` where the headline has no better direction, or two columns of a table
    would have one name.
    """

    name: str
    title: str
    part: str
    parts: tuple[str, ...]
    measures: tuple[Measure, ...]
    failure: str

    def __post_init__(self) -> None:
        if not self.measures or not self.measures[0].better:
            raise ValueError(f"the task {self.name} has no measure by which models are ranked")
        names = [measure.name for measure in self.measures]
        taken = {*CASE_KEYS, *SUMMARY_KEYS, *SUMMARY_COLUMNS, "failed"}
        if len({self.part, *names}) <= len(names) or taken & {self.part, *names}:
            raise ValueError(f"the task {self.name} gives two columns of a table one name")

    @property
    def headline(self) -> Measure:
        """The measure that models are ranked and curves drawn by."""
        return self.measures[0]

    @property
    def second(self) -> Measure | None:
        """The measure shown beside the headline; None where it is the only one."""
        return self.measures[1] if len(self.measures) > 1 else None

    def measure(self, name: str) -> Measure:
        """The measure of that name; ``KeyError`` if there is none."""
        return {measure.name: measure for measure in self.measures}[name]

    @property
    def per_case(self) -> tuple[Measure, ...]:
        """What a case is measured by: all but the measures of a whole split."""
        return tuple(measure for measure in self.measures if not measure.whole)

    @property
    def case_columns(self) -> tuple[str, ...]:
        """The columns of ``cases.csv``: one row a model, case and part."""
        listed = (measure.name for measure in self.per_case if measure.listed)
        return (*CASE_KEYS, *self._part_column, *listed, "failed")

    @property
    def summary_columns(self) -> tuple[str, ...]:
        """The columns of ``cross_site.csv``: one row a model, site, part and measure."""
        return (*SUMMARY_KEYS, *self._part_column, *SUMMARY_COLUMNS)

    @property
    def _part_column(self) -> tuple[str, ...]:
        return (self.part,) if self.part else ()

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            **{field.name: getattr(self, field.name) for field in fields(self)},
            "measures": [measure.to_json() for measure in self.measures],
        }

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> TaskCard:
        """Undo :meth:`to_json`."""
        measures = tuple(Measure.from_json(measure) for measure in told["measures"])
        return cls(**{**told, "parts": tuple(told["parts"]), "measures": measures})


@dataclass(frozen=True)
class Row:
    """What a task says of one case and part, or of a whole split.

    ``values`` maps every measure of a case to its number (nan where a sparse one does not apply).
    Of a split, ``case`` and ``subject`` are empty, ``values`` has one whole measure, ``interval``
    bounds it, and ``n`` counts the cases.
    """

    case: str
    subject: str
    vendor: str
    part: str
    values: dict[str, float]
    failed: bool = False
    interval: tuple[float, float] | None = None
    n: int = 1

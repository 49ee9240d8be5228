"""What can be wrong with a federation's files, each kind under a code that stays the same.

A finding is told in two forms. On the user's own terminal and in a site's own log it names the
file (:meth:`Finding.told`). What leaves a site names the table's row and the code, because a path
may hold a patient's name (:meth:`Finding.abroad`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedshift import UserError

Severity = Literal["error", "warning"]


class FileFault(UserError):
    """One file cannot be used.

    ``code`` names the kind of fault, ``problem`` continues a sentence that begins with the file,
    and ``way_out`` says what to do.
    """

    def __init__(self, code: str, path: Path | str, problem: str, way_out: str) -> None:
        super().__init__(f"{path} {problem}; {way_out}.")
        self.code = code
        self.path = str(path)
        self.problem = problem
        self.way_out = way_out


@dataclass(frozen=True)
class Remark:
    """What a reader noticed in a file that can be used all the same: worded as a fault is."""

    code: str
    problem: str
    way_out: str


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: ``error`` when results would be, ``warning`` when they may be.

    ``file`` is empty when the finding concerns a whole site, and ``site`` when the federation.
    ``row`` is the line of the table that lists the file, 0 where there is none.
    """

    severity: Severity
    code: str
    site: str
    file: str
    problem: str
    way_out: str
    row: int = 0

    def told(self) -> str:
        """For the user's own terminal and log: with the file's name."""
        where = ": ".join(part for part in (self.site, self.file) if part)
        return f"{where}: {self.problem}; {self.way_out}" if where else self.problem

    def abroad(self) -> str:
        """For what leaves the site: the row and the code, nothing that a file or a text held."""
        where = f"row {self.row}: " if self.row else ""
        return f"{where}{self.code}"

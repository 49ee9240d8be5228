"""With what a run was made, from its ``run.json``: versions, and a hash of fedshift's own code.

The file lists a run's *segments*: a run that goes on with other versions, or is made longer, gets
another one. A run folder without it is older than the file.
"""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fedshift
from fedshift import UserError
from fedshift.protocol.settings import from_mapping, setting
from fedshift.protocol.storage import read_json, write_atomic
from fedshift.sites.cache import digest

NAME = "run.json"
FORMAT = 1
"""Of the run folder. A folder of a higher one is not touched."""

_PARTS = ("client", "configs", "protocol", "runs", "server", "sites", "strategies")


@dataclass(frozen=True)
class Segment:
    """The rounds after ``after_round``, of a run that was to have ``rounds`` then, and the versions
    that they were made with; ``code`` is the hash of :func:`code_hash`."""

    after_round: int = setting(0, at_least=0)
    rounds: int = setting(1, at_least=1)
    fedshift: str = ""
    python: str = ""
    torch: str = ""
    flwr: str = ""
    numpy: str = ""
    code: str = ""

    @property
    def versions(self) -> dict[str, str]:
        """What the numbers may depend on, by name."""
        return {k: v for k, v in asdict(self).items() if k not in ("after_round", "rounds")}


@lru_cache(maxsize=1)
def code_hash() -> str:
    """A hash of the package's Python files and configs, by path."""
    root = Path(fedshift.__file__).parent
    files = [root / "__init__.py", *(root / "configs").rglob("*.yaml")]
    for part in _PARTS:
        files += (root / part).rglob("*.py")  # No YAML: runs/ may also hold what runs wrote.
    files.sort()
    return digest(*(x for p in files for x in (p.relative_to(root).as_posix(), p.read_bytes())))


def here(after_round: int, rounds: int) -> Segment:
    """A segment that begins now."""
    return Segment(
        after_round,
        rounds,
        fedshift=fedshift.__version__,
        python=platform.python_version(),
        **{name: version(name) for name in ("torch", "flwr", "numpy")},
        code=code_hash(),
    )


def read(out: Path) -> list[Segment]:
    """The segments of the run in ``out``; none where it is older than this file.

    Raises :class:`UserError` when the file is damaged or of a newer format.
    """
    path = out / NAME
    if not path.exists():
        return []
    found = read_json(path, lambda node: node)
    damaged = UserError(
        f"{path} is damaged; restore it from a copy, or remove it and go on with resume=force"
    )
    if not isinstance(found, dict) or not isinstance(found.get("format"), int):
        raise damaged
    if found["format"] > FORMAT:
        raise UserError(
            f"{out} was written by a newer fedshift (format {found['format']}, this one knows "
            f"{FORMAT}); go on with that one, or choose another out=DIR"
        )
    listed = found.get("segments")
    if not isinstance(listed, list) or not listed:
        raise damaged
    try:
        return [from_mapping(Segment, segment) for segment in listed]
    except (UserError, AttributeError) as error:
        raise damaged from error


def write(out: Path, after_round: int, rounds: int) -> None:
    """Note that the rounds after ``after_round`` are made here and now."""
    new = here(after_round, rounds)
    # What was noted before a kill is not noted twice.
    segments = [one for one in read(out) if one != new and one.after_round <= after_round]
    node: dict[str, Any] = {
        "format": FORMAT,
        "segments": [asdict(segment) for segment in (*segments, new)],
    }
    write_atomic(out / NAME, json.dumps(node, indent=1) + "\n")


def differing(out: Path) -> str:
    """How what the run in ``out`` was last made with differs from what is here, in words; empty
    where it does not."""
    segments = read(out)
    if not segments:
        return f"there is no {NAME}, so that it is not known what made it"
    now, then = here(0, 1).versions, segments[-1].versions
    others = [name for name in now if now[name] != then[name]]
    told = [f"{name} {then[name]} (here {now[name]})" for name in others if name != "code"]
    if "code" in others:
        told.append("another state of fedshift's code")
    return f"made with {', '.join(told)}" if told else ""

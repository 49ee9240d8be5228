"""Walking a folder once, and reading the small tables that lie in it."""

from __future__ import annotations

import csv
import io
import os
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fedshift import UserError
from fedshift.sites import readers
from fedshift.sites.readers import matrix
from fedshift.sites.readers.files import DICOM_SUFFIXES
from fedshift.sites.table import json_of

_OTHERS = (*DICOM_SUFFIXES, *matrix.SUFFIXES)
IMAGES = tuple(suffix for suffix in readers.SUFFIXES if suffix not in _OTHERS)
"""What the names of image files end in; DICOM is a layout of its own."""

TEXTS = (".txt", ".md", ".rst", ".json", ".csv", ".tsv", ".xml", ".html", ".pdf", ".yaml", ".yml")
"""What the names of files that are about images end in; they need not be named as left out."""

_BIGGEST = 200_000_000
"""Bytes of the biggest JSON or table that is read: a list of a million images is smaller."""


@dataclass(frozen=True)
class Tree:
    """A folder, walked once: its files relative to ``root``, sorted, hidden ones left out.

    ``listing`` is set where the user named a file (a list of images) instead of a folder.
    """

    root: Path
    files: tuple[Path, ...]
    listing: Path | None = None
    left_out: dict[str, list[str]] = field(default_factory=dict)

    @cached_property
    def known(self) -> frozenset[Path]:
        """The files, to be asked for one."""
        return frozenset(self.files)

    @cached_property
    def images(self) -> tuple[Path, ...]:
        """The files whose names end as an image's do (DICOM aside)."""
        return tuple(file for file in self.files if ending(file) in IMAGES)

    def at(self, folder: Path, name: Any) -> Path:
        """The file that a list in ``folder`` calls ``name``, with slashes of either kind."""
        return Path(os.path.normpath(self.root / folder / str(name).replace("\\", "/")))

    def shown(self, path: Path) -> str:
        """``path`` relative to the folder where it lies in it."""
        inside = path.is_relative_to(self.root)
        return path.relative_to(self.root).as_posix() if inside else str(path)


def walk(folder: Path) -> Tree:
    """Walk ``folder``, each real directory once, however links run; links are followed last.

    Raises:
        UserError: there is no such folder, or it is empty.
    """
    folder = folder.expanduser()
    if folder.is_file():
        inside = walk(folder.parent)
        return Tree(inside.root, inside.files, folder.resolve(), inside.left_out)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; name the folder that holds the images.")
    root = folder.resolve()
    left_out: dict[str, list[str]] = defaultdict(list)
    files: list[Path] = []
    seen: set[tuple[int, int]] = set()
    folders, links = [root], list[Path]()
    while folders or links:
        at = folders.pop() if folders else links.pop()
        try:
            stamp = at.stat()
            entries = sorted(os.scandir(at), key=lambda entry: entry.name)
        except OSError:
            left_out["folders that cannot be opened"].append(str(at.relative_to(root)))
            continue
        if (stamp.st_dev, stamp.st_ino) in seen:
            left_out["links to a folder that is in here already"].append(str(at.relative_to(root)))
            continue
        seen.add((stamp.st_dev, stamp.st_ino))
        for entry in entries:
            path = Path(entry.path)
            if entry.name.startswith("."):
                continue
            if path.is_dir():
                (links if entry.is_symlink() else folders).append(path)
            elif path.is_file():
                files.append(path.relative_to(root))
            elif entry.is_symlink():
                left_out["links to files that are not here (git-annex, DataLad: get them)"].append(
                    str(path.relative_to(root))
                )
    if not files:
        raise UserError(f"{folder} holds no files; name the folder that holds the images.")
    return Tree(root, tuple(sorted(files)), None, dict(left_out))


def ending(path: Path) -> str:
    """The suffix in small letters, an image's whole (``.nii.gz``); empty where there is none."""
    return path.name[len(readers.stem(path)) :].lower() or path.suffix.lower()


def stem(path: Path) -> str:
    """The name without :func:`ending`."""
    return path.name[: len(path.name) - len(ending(path))]


def read_json(path: Path) -> Any:
    """Read a JSON file; raise ``UserError`` when it is none."""
    try:
        return json_of(_text(path))
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:80] or type(error).__name__
        raise UserError(f"{path} is no readable JSON ({reason}); mend it.") from None


def read_table(path: Path) -> list[dict[str, str]]:
    """Read a table with a header, cells stripped; tabs, semicolons or commas, as its header has."""
    text = _text(path)
    header = text.split("\n", 1)[0]
    delimiter = max("\t;,", key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
        return [
            {name: (cell or "").strip() for name, cell in row.items() if name is not None}
            for row in reader
        ]
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}; mend the table.") from None


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _BIGGEST:
            raise UserError(f"{path} is too large to be a list of images; give the right file.")
        return path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = type(error).__name__
        raise UserError(f"{path} cannot be read ({reason}); save it as UTF-8 text.") from None

"""Paths as tables name them: on another system, from a home folder, in another Unicode form."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from fedshift.sites.names import spelling


class Files:
    """Finds the files that the cells of a table in ``folder`` name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._listed: dict[Path, dict[str, list[str]]] = {}

    def locate(self, text: str) -> Path:
        """The path ``text`` as written, if a file is there.

        Else ``~`` is the home folder, a backslash a slash, and a name may be spelt otherwise on
        the disk, if one file alone has that spelling. Without a file, the path as written.
        """
        written = self._folder / text
        if _exists(written):
            return written
        for reading in dict.fromkeys((text, text.replace("\\", "/"))):
            path = self._folder / _from_home(reading)
            found = path if _exists(path) else self._respelt(path)
            if found is not None:
                return found
        return self._folder / _from_home(text)

    def _respelt(self, path: Path) -> Path | None:
        place = Path(path.anchor)
        for part in path.parts[bool(path.anchor) :]:
            if _exists(place / part):
                place /= part
                continue
            alike = self._names_in(place).get(spelling(part), [])
            if len(alike) != 1:
                return None
            place /= alike[0]
        return place

    def _names_in(self, folder: Path) -> dict[str, list[str]]:
        if folder not in self._listed:
            names = defaultdict(list)
            try:
                for file in folder.iterdir():
                    names[spelling(file.name)].append(file.name)
            except OSError:
                pass  # no folder, nothing in it
            self._listed[folder] = names
        return self._listed[folder]


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True


def _from_home(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # no such user
        return Path(text)

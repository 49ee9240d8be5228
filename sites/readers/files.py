"""The files behind a path, and their bytes."""

from __future__ import annotations

from pathlib import Path

from fedshift.sites.findings import FileFault
from fedshift.sites.readers.volume import Contents


def is_dicom(path: Path) -> bool:
    """Whether ``path`` is read as DICOM: a folder, or a .dcm or .ima file."""
    return path.suffix.lower() in (".dcm", ".ima") or path.is_dir()


def file_list(path: Path) -> list[Path]:
    """The files behind ``path``, sorted: itself, or a folder's files (hidden ones left out)."""
    if not path.is_dir():
        return [path]
    return sorted(
        file
        for file in path.iterdir()
        if file.is_file() and not file.name.startswith(".") and file.name.upper() != "DICOMDIR"
    )


def read(path: Path) -> Contents:
    """Read all bytes behind ``path``; raise ``UserError`` when there is nothing to read."""
    try:
        contents = [(file, file.read_bytes()) for file in file_list(path)]
    except FileNotFoundError:
        raise FileFault(
            "missing-file", path, "does not exist", "mend the path in the table or put it there"
        ) from None
    except OSError as error:
        raise FileFault(
            "unreadable", path, f"cannot be read ({error.strerror})", "mend its permissions"
        ) from None
    if not contents:
        raise FileFault(
            "missing-file", path, "is an empty folder", "a folder must hold one DICOM series"
        )
    return contents

"""The files behind a path, and their bytes."""

from __future__ import annotations

from pathlib import Path

from fedshift.sites.findings import FileFault
from fedshift.sites.readers import matrix, metaimage, nrrd
from fedshift.sites.readers.volume import Contents

DICOM_SUFFIXES = (".dcm", ".ima")
SUFFIXES = (
    ".nii.gz",
    ".nii",
    *nrrd.SUFFIXES,
    *metaimage.SUFFIXES,
    ".png",
    ".bmp",
    ".jpg",
    ".jpeg",
    ".tif",
    ".tiff",
    *matrix.SUFFIXES,
    *DICOM_SUFFIXES,
)
"""What the names of readable files end in, in lower case."""


def stem(path: Path) -> str:
    """A file's name without the suffix of its format."""
    for suffix in (*SUFFIXES, *matrix.TABLES):
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


def is_dicom(path: Path) -> bool:
    """Whether ``path`` is read as DICOM: a folder, a .dcm or .ima file, or one that no format's
    suffix names and that begins as DICOM does."""
    if path.name.lower().endswith(SUFFIXES):
        return path.suffix.lower() in DICOM_SUFFIXES or path.is_dir()
    return path.is_dir() or _start(path, 132)[128:] == b"DICM"


def file_list(path: Path) -> list[Path]:
    """The files behind ``path``, sorted: itself, or a folder's files (hidden ones left out); after
    a header of NRRD or MetaImage the file that it names for its data."""
    if not path.is_dir():
        for kind in (nrrd, metaimage):
            if path.suffix.lower() in kind.SUFFIXES:
                data = kind.data_file(path, _start(path, 1 << 16))
                return [path] if data is None else [path, data]
        return [path]
    return sorted(
        file
        for file in path.iterdir()
        if file.is_file() and not file.name.startswith(".") and file.name.upper() != "DICOMDIR"
    )


def read(path: Path) -> Contents:
    """Read all bytes behind ``path``; raise ``UserError`` when there is nothing to read."""
    contents = []
    for file in file_list(path):
        try:
            contents.append((file, file.read_bytes()))
        except FileNotFoundError:
            raise FileFault(
                "missing-file",
                path,
                "does not exist" if file == path else f"names {file}, which does not exist",
                "mend the path in the table or put it there",
            ) from None
        except OSError as error:
            raise FileFault(
                "unreadable", file, f"cannot be read ({error.strerror})", "mend its permissions"
            ) from None
    if not contents:
        raise FileFault(
            "missing-file", path, "is an empty folder", "a folder must hold one DICOM series"
        )
    return contents


def _start(path: Path, size: int) -> bytes:
    """The first bytes of a file; none where it cannot be read, which reading it says later."""
    try:
        with path.open("rb") as file:
            return file.read(size)
    except (OSError, ValueError):
        return b""


def state(*names: str) -> str:
    """The state of the files behind ``names`` (empty ones passed over), without reading them."""
    states = []
    for name in filter(None, names):
        try:
            for file in file_list(Path(name)):
                found = file.stat()
                changed = f"{found.st_mtime_ns} {found.st_ctime_ns} {found.st_mode}"
                states.append(f"{file} {found.st_size} {changed}")
        except OSError as error:
            states.append(f"{name} {error.errno}")
    return "\n".join(states)

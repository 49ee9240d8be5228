"""Prepared arrays on disk, by content: one entry a site, memory-mapped, safe to delete any time.

An entry is ``<cache>/<2 hex>/<key>/``: an .npy file an array and ``meta.json``; its key hashes the
bytes of the images and labels, the settings and this package's code. To open a site again without
reading its images, ``<cache>/stamps/`` remembers which key belongs to which state of the files
(path, size, times of change); a stamp is only ever a shortcut to a key.
"""

from __future__ import annotations

import errno
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from fedshift import UserError


@dataclass(frozen=True)
class Entry:
    """An opened entry: its arrays by name, and ``meta``."""

    arrays: Mapping[str, np.ndarray]
    meta: dict[str, Any]


def digest(*parts: bytes | str) -> str:
    """A 128-bit BLAKE2b hash in hex; each part's length is hashed too, so parts cannot run on."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "big"))
        state.update(data)
    return state.hexdigest()


@lru_cache(maxsize=1)
def code_hash() -> str:
    """A hash of the code that draws, reads and prepares images: its results never outlive it."""
    folder = Path(__file__).parent
    files = sorted(folder.rglob("*.py"))
    return digest(*(file.read_bytes() for file in files))


class ArrayWriter:
    """A .npy file that grows along its first axis, so that a site need not fit in memory."""

    def __init__(self, path: Path, dtype: type, row: tuple[int, ...] = ()) -> None:
        self._file: BinaryIO = path.open("wb")
        self._dtype, self._row = np.dtype(dtype), row
        self.length = 0
        self._write_header()

    @property
    def written(self) -> tuple[tuple[int, ...], str]:
        """The shape and the type of what is written."""
        return (self.length, *self._row), self._dtype.name

    def append(self, rows: np.ndarray) -> None:
        """Add ``rows`` (n, *row)."""
        if rows.shape[1:] != self._row:
            raise ValueError(f"expected rows {self._row}, got {rows.shape[1:]}")
        self._file.write(np.ascontiguousarray(rows, self._dtype).data)
        self.length += len(rows)

    def _write_header(self) -> None:
        # numpy leaves room in the header for the first axis to grow.
        np.lib.format.write_array_header_1_0(
            self._file,
            {
                "descr": np.lib.format.dtype_to_descr(self._dtype),
                "fortran_order": False,
                "shape": (self.length, *self._row),
            },
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            self._file.seek(0)
            self._write_header()


@lru_cache(maxsize=1)
def allow_many_files() -> None:
    """Let this process hold as many files as the system grants it: three for each open site.

    The usual default, 1,024, is used up by some 400 sites.
    """
    if sys.platform != "win32":
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class Cache:
    """The cache in ``folder``, made when first written to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        allow_many_files()

    def find(self, stamp: str) -> Entry | None:
        """The entry last stored under ``stamp``; None when there is none or it is damaged."""
        try:
            key = self._stamp(stamp).read_text()
        except OSError:
            return None
        return self._load(key) if len(key) == 32 else None

    def store(self, stamp: str, build: Callable[[Path], str]) -> Entry:
        """Let ``build`` fill a new folder and return its key; keep it, and open it.

        Raises:
            UserError: the folder cannot be written to.
        """
        with self._temporary() as folder:
            key = build(folder)
            self._keep(folder, key)
            marker = folder.parent / "stamp"
            marker.write_text(key)
            self._stamp(stamp).parent.mkdir(parents=True, exist_ok=True)
            marker.replace(self._stamp(stamp))
            entry = self._load(key)
        if entry is None:
            raise UserError(f"the cache {self.folder} was changed while in use; run again.")
        return entry

    def remember(self, key: str, make: Callable[[], Any]) -> Any:
        """What is kept as JSON under ``key``; made, and kept, where there is nothing readable.

        Raises:
            UserError: the folder cannot be written to.
        """
        place = self.folder / "texts" / key[:2] / key
        try:
            return json.loads(place.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            text = json.dumps(make())
        with self._temporary() as folder:
            fresh = folder / "text"
            fresh.write_text(text, encoding="utf-8")
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh.replace(place)
        return json.loads(text)

    @contextmanager
    def _temporary(self) -> Iterator[Path]:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix="tmp-", dir=self.folder) as name:
                folder = Path(name) / "entry"
                folder.mkdir(mode=0o700)  # It holds images: other accounts are to see none.
                yield folder
        except OSError as error:
            what = "is full" if error.errno == errno.ENOSPC else f"fails ({error.strerror})"
            raise UserError(
                f"the cache {self.folder} {what}; free space or set data.cache to another folder."
            ) from error

    def _keep(self, folder: Path, key: str) -> None:
        """Move a finished folder to its place, unless another process put a sound one there."""
        place = self._place(key)
        place.parent.mkdir(exist_ok=True)
        if place.exists() and self._load(key) is None:
            # Moved aside in one step: another process sees a damaged entry or none.
            place.rename(folder.parent / "damaged")
        try:
            folder.rename(place)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise

    def _load(self, key: str) -> Entry | None:
        place = self._place(key)
        try:
            meta = json.loads((place / "meta.json").read_text())
            arrays = {}
            for name, (shape, dtype) in meta["arrays"].items():
                arrays[name] = np.load(place / f"{name}.npy", mmap_mode="r")
                if list(arrays[name].shape) != shape or arrays[name].dtype != dtype:
                    return None
        except (OSError, ValueError, KeyError, TypeError, EOFError):
            return None
        return Entry(arrays, meta)

    def _place(self, key: str) -> Path:
        return self.folder / key[:2] / key

    def _stamp(self, stamp: str) -> Path:
        return self.folder / "stamps" / stamp[:2] / stamp

"""Files that are either whole or absent: text and tensors written beside and renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from fedshift import UserError


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write ``data`` to ``path`` so that a reader or a crash sees the old file or the new one.

    Raises :class:`UserError` when the file cannot be written, as when the disk is full; the old
    file is untouched then.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            # A file name from the system may hold what UTF-8 cannot spell.
            file.write(data.encode(errors="backslashreplace") if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):  # The folder itself may be what cannot be used.
            temporary.unlink()
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"the disk that holds {path} is full ({error.strerror}); free some space and run "
                "the same command again with resume=true"
            ) from error
        raise UserError(
            f"cannot write {path} ({error.strerror or error}); make its folder writable or choose "
            "another out=DIR"
        ) from error


_LONGEST_NAME = 120


def folder_name(text: str) -> str:
    """``text`` as the name of one folder, the same for equal texts and another for others.

    What a file system may refuse becomes ``_``, and a long text is cut; both then end with a hash
    of the text.
    """
    name = re.sub(r"[^\w.,=+\-\[\]() ]", "_", text).strip()
    if name == text and not name.startswith(".") and 0 < len(name.encode()) <= _LONGEST_NAME:
        return name
    cut = name.encode()[: _LONGEST_NAME - 9].decode(errors="ignore").strip(". ")
    return f"{cut}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write named arrays as safetensors, atomically; equal arrays give equal bytes."""
    ordered = {name: np.asarray(tensors[name], order="C") for name in sorted(tensors)}
    write_atomic(path, save_tensors(ordered))


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Read what :func:`write_tensors` wrote, by name; raises :class:`UserError` when the file is
    damaged."""
    try:
        # The library's own order is that of a hash table, another one in every process.
        return dict(sorted(load_tensors(path.read_bytes()).items()))
    except (SafetensorError, ValueError) as error:
        raise UserError(
            f"{path} is not a readable safetensors file ({error}); restore it from a copy or "
            "start again in another folder"
        ) from error


def keep_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrite a file of JSON lines with those that ``keep`` accepts, atomically; nothing if absent.

    A line that is not JSON is what a kill left half written, and is dropped.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if keep(entry):
            kept.append(line + "\n")
    write_atomic(path, "".join(kept))

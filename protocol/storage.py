"""Files that are either whole or absent: text and tensors written beside and renamed. What is read
back may be damaged or come from elsewhere: it is bounded, and a fault is one sentence."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from fedshift import UserError

T = TypeVar("T")

_LARGEST_YAML = 2**20
"""Bytes. A configuration has a few thousand."""
_WAY_OUT = "restore it from a copy, or begin again in another folder"


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
                "the same command again"
            ) from error
        raise UserError(
            f"cannot write {path} ({error.strerror or error}); make its folder writable or choose "
            "another"
        ) from error


def write_key(path: Path, data: bytes) -> None:
    """Write a new file that its owner alone can read; raises :class:`UserError` when there is
    one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise UserError(
            f"{path} is there already; a key is not written over: move it away first"
        ) from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


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
    except (SafetensorError, ValueError, OSError) as error:
        raise UserError(
            f"{path} is not a readable safetensors file ({_reason(error)}); {_WAY_OUT}"
        ) from error


def _reason(error: Exception) -> str:
    """What went wrong, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return " ".join(str(error).split()) or type(error).__name__


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({_reason(error)}); {_WAY_OUT}") from error


def _parsed(text: str, parse: Callable[[Any], T], where: str) -> T:
    try:
        node = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON, as when a file is cut short; {_WAY_OUT}") from error
    try:
        return parse(node)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{where} is damaged ({_reason(error)}); {_WAY_OUT}") from error


def read_json(path: Path, parse: Callable[[Any], T]) -> T | None:
    """What ``parse`` makes of a JSON file, None without one.

    Raises :class:`UserError` when it cannot be read, is no JSON, or is not what ``parse`` takes.
    """
    return _parsed(_text(path), parse, str(path)) if os.path.lexists(path) else None


def read_json_lines(path: Path, parse: Callable[[Any], T]) -> list[T]:
    """What ``parse`` makes of each line of a file of JSON, none without a file; raises as
    :func:`read_json` does."""
    lines = _text(path).splitlines() if os.path.lexists(path) else []
    return [_parsed(line, parse, f"{path} line {n}") for n, line in enumerate(lines, start=1)]


class _Plain(yaml.SafeLoader):
    """Plain data alone: an alias, which can make a short file endless, is refused."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it holds an alias, which no run writes")
        return super().compose_node(parent, index)


class _Whole(yaml.SafeDumper):
    """Writes a list that stands in two places twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds, as it stands: nothing in it is looked up elsewhere.

    Raises :class:`UserError` when it cannot be read, is too large, or holds anything else.
    """
    try:
        if path.is_file() and path.stat().st_size > _LARGEST_YAML:
            raise yaml.YAMLError(f"it has more than {_LARGEST_YAML} bytes")
        node = yaml.load(path.read_text(encoding="utf-8"), _Plain)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read ({_reason(error)}); {_WAY_OUT}") from error
    if not isinstance(node, dict):
        raise UserError(f"{path} holds no settings; {_WAY_OUT}")
    return {str(key): value for key, value in node.items()}


def write_yaml(path: Path, node: Mapping[str, Any]) -> None:
    """Write a mapping so that :func:`read_yaml` reads it back, atomically."""
    text = yaml.dump(dict(node), Dumper=_Whole, sort_keys=False, allow_unicode=True)
    write_atomic(path, text)


def check_links(folder: Path) -> None:
    """Raise :class:`UserError` where ``folder`` holds a link that leads out of it, or what is no
    file at all: a folder that was received must reach nothing else on this machine."""
    root = os.path.realpath(folder)
    for place, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(place, name)
            mode = path.lstat().st_mode
            inside = Path(os.path.realpath(path)).is_relative_to(root)
            if not inside or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
                what = "is no file" if inside else "is a link that leads out of the folder"
                raise UserError(f"{path} {what}; put the file itself in its place, or remove it")


def append_lines(path: Path, lines: Sequence[str]) -> None:
    """Append ``lines`` to a file, on disk before it returns; never onto a line that a crash left
    half written. Raises ``OSError`` where that cannot be."""
    with path.open("ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write("".join(line + "\n" for line in lines).encode())
        file.flush()
        os.fsync(file.fileno())


def keep_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrite a file of JSON lines with those that ``keep`` accepts, atomically; nothing if absent.

    A line that is not JSON is what a kill left half written, and is dropped. Raises
    :class:`UserError` for one that ``keep`` cannot take.
    """
    if not path.exists():
        return
    kept = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        with suppress(ValueError):
            json.loads(line)
            if _parsed(line, keep, f"{path} line {number}"):
                kept.append(line + "\n")
    write_atomic(path, "".join(kept))

"""From a layout's rows to the table: what the user says is put in, what lacks is asked for."""

from __future__ import annotations

import csv
import io
import os
import re
import secrets
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from fedshift import UserError
from fedshift.sites import readers
from fedshift.sites.adopt.files import IMAGES, TEXTS, Tree, ending
from fedshift.sites.adopt.found import GROUPS, Adopted, Options, Row, counted, three

_CELLS = ("site", "subject", "session", "vendor", "scanner", "spacing_mm", "label_values")
_REQUIRED = ("site", "subject")


def complete(found: Adopted, tree: Tree, options: Options) -> None:
    """Fill in what ``options`` say, drop what no table can hold, and insist on the rest.

    Raises:
        UserError: a pattern misses an image, an image has no subject or site, or none is left.
    """
    _drop(found, tree)
    _name_the_rest(found, tree)
    if not found.rows:
        reasons = "; ".join(
            counted(reason, names) for reason, names in found.left_out.items() if names
        )
        raise UserError(
            f"{tree.root} gives no image ({found.layout})"
            + (f": {reasons}." if reasons else "; name the folder that holds them.")
        )
    for option, pattern in (("--pattern", options.pattern), ("--subject", options.subject)):
        if pattern is not None:
            _apply(found, tree, option, pattern)
    if options.site:
        for row in found.rows:
            row.site = options.site
        found.origin["site"] = "--site"
    _insist(found, tree)
    _suspect(found)


def _suspect(found: Adopted) -> None:
    """Note where the subjects, though given, look like something else."""
    sites = defaultdict(set)
    for row in found.rows:
        sites[row.subject].add(row.site)
    shared = [subject for subject, at in sites.items() if len(at) > 1]
    if shared:
        found.notes.append(
            f"{len(shared)} subjects stand at several sites: {three(sorted(shared))}; where they "
            "are different people of one name, let --subject take in the site."
        )
    if len(sites) == 1 and len(found.rows) > 1:
        found.notes.append(
            f"all {len(found.rows)} images are of one subject, {next(iter(sites))}; where they are "
            "of several people, say who with --subject."
        )


def _drop(found: Adopted, tree: Tree) -> None:
    """Leave out what is listed twice, 4-D, or named so that a table cannot hold it."""
    kept: list[Row] = []
    seen: set[Path] = set()
    for row in found.rows:
        name = tree.shown(row.image)
        if row.image in seen:
            found.left_out["images that are named twice"].append(name)
        elif any(_unwritable(path) for path in (row.image, row.label) if path):
            found.left_out[
                "names with tabs, line breaks, bytes that are no UTF-8, or spaces at their ends"
            ].append(name)
        elif _volumes(row.image) > 1:
            found.left_out["4-D files (one volume a file is read; split them)"].append(name)
        else:
            kept.append(row)
        seen.add(row.image)
    found.rows[:] = kept


def _name_the_rest(found: Adopted, tree: Tree) -> None:
    """Name as left out what is neither in the table nor named yet: nothing goes unsaid."""
    named = {name for names in found.left_out.values() for name in names}
    used = set()
    for row in found.rows:
        for path in (row.image, row.label):
            if path is not None:
                used |= {path, *readers.file_list(path)}
    for file in tree.files:
        path, end = tree.root / file, ending(file)
        if path in used or not named.isdisjoint((str(file), file.as_posix(), str(path))):
            continue
        if end in IMAGES:
            found.left_out["image files that the layout has no place for"].append(str(file))
        elif end and end not in TEXTS and not found.whole:
            found.left_out["files that are no images, or of other formats"].append(str(file))


def _unwritable(path: Path) -> bool:
    name = str(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        return True
    return bool(re.search(r"[\t\r\n]|^\s|\s$", name))


def _volumes(path: Path) -> int:
    """How many volumes a NIfTI header counts; 1 where there is none: reading it says why."""
    if ending(path) not in (".nii", ".nii.gz"):
        return 1
    import math

    import nibabel

    try:
        return math.prod(getattr(nibabel.load(path), "shape", ())[3:])
    except Exception:  # a damaged file is the doctor's to name
        return 1


def _apply(found: Adopted, tree: Tree, option: str, pattern: re.Pattern[str]) -> None:
    missed = []
    for row in found.rows:
        name = tree.shown(row.lies_at or row.image)
        match = pattern.search(name)
        if match is None:
            missed.append(name)
            continue
        said = (
            {"subject": match[1] if pattern.groups else match[0]}
            if option == "--subject"
            else {group: match[group] for group in GROUPS if group in pattern.groupindex}
        )
        for column, value in said.items():
            if value and value.strip():
                setattr(row, column, value.strip())
                found.origin[column] = option
    if missed:
        raise UserError(
            f"{option} {pattern.pattern!r} matches nothing in {len(missed)} of "
            f"{len(found.rows)} paths: {three(missed)}; widen it."
        )


def _insist(found: Adopted, tree: Tree) -> None:
    """Ask for the site and the subject where neither files nor options name them."""
    ways = {
        "subject": "--subject REGEX, searched in the path, whose first group is the person",
        "site": "--site NAME for all, or --pattern REGEX with a group (?P<site>...)",
    }
    bare = {
        name: [tree.shown(row.lies_at or row.image) for row in found.rows if not getattr(row, name)]
        for name in ways
    }
    asked = [name for name in ways if bare[name]]
    if asked:
        least = min((bare[name] for name in asked), key=len)
        raise UserError(
            f"nothing says the {' and the '.join(asked)} of {len(least)} of {len(found.rows)} "
            f"images ({three(least)}), and it is not guessed; give "
            f"{'; and '.join(ways[name] for name in asked)}."
        )


def key_for(out: Path) -> tuple[Path, bytes]:
    """The file that keeps the key of ``out``'s pseudonyms, and the key: kept there, or new.

    Raises:
        UserError: the file is there but holds no key.
    """
    path = out.with_suffix(".key")
    if not path.exists():
        return path, secrets.token_bytes(32)
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except (OSError, ValueError):
        key = b""
    if len(key) != 32:
        raise UserError(
            f"{path} holds no key of pseudonyms; put the right one there, or remove it and adopt "
            "everything again."
        )
    return path, key


def write(found: Adopted, out: Path, options: Options, *, force: bool = False) -> None:
    """Write the table ``out`` (.tsv or .csv), and the key of its pseudonyms beside it (mode 0600).

    Paths are relative to the table wherever there is a way. Raises ``UserError`` when ``out`` is
    there already and not ``force``, or is no name of a table.
    """
    check_out(out, force=force)
    key_path = out.with_suffix(".key")
    if found.keyed and not key_path.exists():
        handle = os.open(key_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(options.key.hex() + "\n")
    for links, files in found.links.items():
        _link(links, files)
    folder = out.parent.resolve()
    extras = dict.fromkeys(name for row in found.rows for name in row.extra)
    filled = [
        n for n in (*_CELLS, *extras) if n in _REQUIRED or any(cell(r, n) for r in found.rows)
    ]
    text = io.StringIO(newline="")
    delimiter = "\t" if out.suffix.lower() == ".tsv" else ","
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    writer.writerow(["path", "label_path", *filled])
    for row in found.rows:
        label = relative(row.label, folder) if row.label else ""
        writer.writerow([relative(row.image, folder), label, *(cell(row, n) for n in filled)])
    partial = out.with_name(f"{out.name}.part")
    partial.write_text(text.getvalue(), encoding="utf-8")
    partial.replace(out)


def _link(folder: Path, files: Iterable[Path]) -> None:
    """Make ``folder``, with relative links to ``files`` and to nothing that it linked to before."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            if old.is_symlink():
                old.unlink()
        for number, file in enumerate(files):
            # Files of two folders may have one name.
            (folder / f"{number:05d}_{file.name}").symlink_to(os.path.relpath(file, folder))
    except OSError as error:
        raise UserError(
            f"no links can be made in {folder} ({error.strerror}); put the files of each series "
            "into a folder of its own."
        ) from None


def check_out(out: Path, *, force: bool) -> None:
    """Refuse a table that cannot or must not be written, before anything is read."""
    if out.suffix.lower() not in (".tsv", ".csv"):
        raise UserError(f"--out {out} must be a .tsv or .csv table; name it so.")
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; name a table in it.")
    if out.exists() and not force:
        raise UserError(f"{out} is there already; name another --out, or replace it with --force.")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}; make it first.")


def cell(row: Row, name: str) -> str:
    """A row's cell in one line, empty where it has none."""
    value = getattr(row, name) if name in _CELLS else row.extra.get(name, "")
    return " ".join(str(value).split())


def relative(path: Path, folder: Path) -> str:
    """``path`` as seen from ``folder``, with slashes; absolute where there is no way (a drive)."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:
        return path.as_posix()


def filled(rows: Iterable[Row], name: str) -> list[str]:
    """The filled cells of a column."""
    return [text for row in rows if (text := cell(row, name))]

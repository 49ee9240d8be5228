"""A MONAI datalist: a JSON file with the lists ``training``, ``validation`` and ``testing``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedshift import UserError
from fedshift.sites.adopt.files import Tree, read_json
from fedshift.sites.adopt.found import Adopted, Layout, Options, Row, choose, one_of
from fedshift.sites.adopt.nnunet import NAME

PARTS = ("training", "validation", "testing", "test")
SUBJECTS = ("subject", "subject_id", "patient", "patient_id", "participant_id")


def _lists(tree: Tree) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The datalists: the file that was named, or every one at the folder's top."""
    files = (
        [tree.listing]
        if tree.listing
        else [tree.root / f for f in tree.files if len(f.parts) == 1 and f.suffix == ".json"]
    )
    for file in files:
        if file.name == NAME and not tree.listing:
            continue  # nnU-Net's and the Decathlon's
        try:
            said = read_json(file)
        except UserError:
            if tree.listing:
                raise
            continue
        parts = [said.get(part) for part in PARTS] if isinstance(said, dict) else []
        if any(_is_list(part) for part in parts):
            yield file, said


def _is_list(part: Any) -> bool:
    return isinstance(part, list) and any(isinstance(e, dict) and "image" in e for e in part)


def detect(tree: Tree) -> bool:
    return next(_lists(tree), None) is not None


def adopt(tree: Tree, options: Options) -> Adopted:
    lists = list(_lists(tree))
    if len(lists) != 1:
        named = ", ".join(file.name for file, _ in lists) or "none"
        raise UserError(
            f"{tree.root} must hold one MONAI datalist, not {named}; name the file in place of the "
            "folder."
        )
    file, said = lists[0]
    found = Adopted("MONAI datalist")
    entries = [
        (entry, part)
        for part in PARTS
        for entry in said.get(part) or []
        if isinstance(entry, dict) and "image" in entry
    ]
    if options.label and not any(options.label in entry for entry, _ in entries):
        raise UserError(f"--label {options.label!r} is no key of the entries of {file}.")
    channels = max((len(_several(entry["image"])) for entry, _ in entries), default=1)
    wanted = 0
    if channels > 1:
        counts = {str(k): "channel" for k in range(channels)}
        wanted = int(next(iter(choose("--sequence", "images an entry", counts, options.sequence))))
    for entry, part in entries:
        images = _several(entry["image"])
        if wanted >= len(images):
            found.left_out[f"entries without image {wanted}"].append(", ".join(images))
            continue
        image = tree.at(file.parent, images[wanted])
        label = entry.get(options.label or "label")
        if isinstance(label, list):
            raise UserError(
                f"{file}: the label of {images[wanted]} is a list; a label must be one file."
            )
        drawn = tree.at(file.parent, label) if label else None
        if not image.exists():
            found.left_out["images that the list names and that are not here"].append(
                tree.shown(image)
            )
            continue
        if drawn and not drawn.exists():
            found.left_out["labels that the list names and that are not here"].append(
                tree.shown(drawn)
            )
            drawn = None
        cells = {k: str(v) for k, v in entry.items() if isinstance(v, str | int | float)}
        extra = {"part": part.replace("testing", "test"), "fold": cells.get("fold", "")}
        if channels > 1:
            extra["sequence"] = f"channel {wanted}"
        found.rows.append(
            Row(
                image,
                drawn,
                subject=one_of(cells, SUBJECTS),
                site=one_of(cells, ("site",)),
                vendor=one_of(cells, ("vendor",)),
                scanner=one_of(cells, ("scanner",)),
                session=one_of(cells, ("session",)),
                extra=extra,
            )
        )
    keys = f"the list's own keys, in {file.name}"
    found.origin = dict.fromkeys(
        ("subject", "site", "vendor", "scanner", "session", "part", "fold", "sequence"), keys
    )
    return found


def _several(image: Any) -> list[str]:
    return [str(name) for name in image] if isinstance(image, list) else [str(image)]


LAYOUT = Layout("monai", "MONAI datalist", detect, adopt)

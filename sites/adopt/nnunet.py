"""nnU-Net (versions 1 and 2) and the Medical Segmentation Decathlon, by their ``dataset.json``."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedshift import UserError
from fedshift.sites.adopt.files import IMAGES, Tree, ending, read_json, stem
from fedshift.sites.adopt.found import Adopted, Layout, Options, Row, choose, values_text

NAME = "dataset.json"
PARTS = (("imagesTr", "labelsTr", "training"), ("imagesTs", "labelsTs", "testing"))
_CHANNEL = re.compile(r"(.+)_(\d{4})")


def _folders(tree: Tree) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The folders with a ``dataset.json``: one set, or several beside each other."""
    for file in tree.files:
        if file.name == NAME and len(file.parts) <= 2:
            said = read_json(tree.root / file)
            if isinstance(said, dict) and isinstance(said.get("labels"), dict):
                yield file.parent, said


def _in_channels(tree: Tree, folder: Path) -> bool:
    inside = (f for f in tree.images if f.parent == folder / "imagesTr")
    return any(_CHANNEL.fullmatch(stem(file)) for file in inside)


def _is_nnunet(tree: Tree, folder: Path, said: Mapping[str, Any]) -> bool:
    return "channel_names" in said or _in_channels(tree, folder)


def detect_nnunet(tree: Tree) -> bool:
    return any(_is_nnunet(tree, folder, said) for folder, said in _folders(tree))


def detect_decathlon(tree: Tree) -> bool:
    return any(
        isinstance(said.get("training"), list) and not _is_nnunet(tree, folder, said)
        for folder, said in _folders(tree)
    )


def adopt_nnunet(tree: Tree, options: Options) -> Adopted:
    found = Adopted("nnU-Net")
    images = []
    for folder, said in _folders(tree):
        if not _is_nnunet(tree, folder, said):
            continue
        names = said.get("channel_names") or said.get("modality") or {}
        values = _values(said, folder, found)
        for case, part, channel, file, drawn in _cases(tree, folder, said, found):
            if not file.exists():
                lost = found.left_out[f"images that {NAME} lists and that are not here"]
                lost.append(tree.shown(file))
                continue
            label = drawn if drawn and drawn.exists() else None
            if drawn and label is None:
                lost = found.left_out[f"labels that {NAME} lists and that are not here"]
                lost.append(tree.shown(drawn))
            called = str(names.get(str(channel), channel))
            images.append((case, part, channel, called, file, label, values))
    counts: dict[str, int] = defaultdict(int)
    for image in images:
        counts[image[3]] += 1
    given = options.sequence
    numbers = {str(image[2]): image[3] for image in images}
    given = numbers.get(given.lstrip("0") or "0", given) if given.isdigit() else given
    words = {name: str(n) for name, n in counts.items()}
    chosen = choose("--sequence", "channels", words, given)
    for _, part, _, called, file, label, values in images:
        if called in chosen:
            extra = {"sequence": called, "part": part}
            text = values if label else ""
            found.rows.append(Row(file, label, label_values=text, extra=extra))
        else:
            found.left_out["images of other channels"].append(tree.shown(file))
    _origin(found)
    return found


def _cases(
    tree: Tree, folder: Path, said: Mapping[str, Any], found: Adopted
) -> Iterator[tuple[str, str, int, Path, Path | None]]:
    """Case, part, channel, image, label: as ``dataset`` lists them (version 2), or by name."""
    listed = said.get("dataset")
    if isinstance(listed, dict):
        for case, entry in listed.items():
            label = tree.at(folder, entry["label"]) if entry.get("label") else None
            for channel, image in enumerate(entry.get("images", [])):
                yield case, "training", channel, tree.at(folder, image), label
        return
    for images, labels, part in PARTS:
        drawn = {
            stem(file): file
            for file in tree.images
            if file.parent == folder / labels and ending(file) in IMAGES
        }
        used = set()
        for file in tree.images:
            if file.parent != folder / images:
                continue
            match = _CHANNEL.fullmatch(stem(file))
            if match is None:
                found.left_out["images whose names end in no channel such as _0000"].append(
                    str(file)
                )
                continue
            label = drawn.get(match[1])
            used.add(match[1])
            yield (
                match[1],
                part,
                int(match[2]),
                tree.root / file,
                tree.root / label if label else None,
            )
        found.left_out["labels without an image"] += [
            str(file) for case, file in drawn.items() if case not in used
        ]


def adopt_decathlon(tree: Tree, options: Options) -> Adopted:
    found = Adopted("Medical Segmentation Decathlon")
    for folder, said in _folders(tree):
        if _is_nnunet(tree, folder, said) or not isinstance(said.get("training"), list):
            continue
        values = _values(said, folder, found)
        modalities = said.get("modality") or {}
        sequence = str(next(iter(modalities.values()))) if len(modalities) == 1 else ""
        if options.sequence and sequence.lower() != options.sequence.lower():
            raise UserError(
                f"{tree.root / folder / NAME} keeps its channels in one file, so --sequence cannot "
                "pick one; split the files into a channel each, as nnU-Net names them (_0000)."
            )
        entries = [(entry, "training") for entry in said["training"]]
        entries += [(entry, "testing") for entry in said.get("test") or []]
        used = set()
        for entry, part in entries:
            image, label = (
                (entry.get("image"), entry.get("label"))
                if isinstance(entry, dict)
                else (entry, None)
            )
            path = tree.at(folder, image)
            if not path.exists():
                lost = found.left_out[f"images that {NAME} lists and that are not here"]
                lost.append(tree.shown(path))
                continue
            drawn = tree.at(folder, label) if label else None
            if drawn and not drawn.exists():
                lost = found.left_out[f"labels that {NAME} lists and that are not here"]
                lost.append(tree.shown(drawn))
                drawn = None
            used |= {path, drawn}
            found.rows.append(
                Row(
                    path,
                    drawn,
                    label_values=values if drawn else "",
                    extra={"sequence": sequence, "part": part},
                )
            )
        found.left_out[f"images that {NAME} does not list"] += [
            str(f) for f in tree.images if folder in f.parents and tree.root / f not in used
        ]
    _origin(found)
    return found


def _values(said: Mapping[str, Any], folder: Path, found: Adopted) -> str:
    """``label_values`` from ``labels``: value -> name (version 1) or name -> value (version 2).

    Empty where a name takes several values: regions overlap, which no single value can say.
    """
    names: dict[int, str] = {}
    for key, value in said["labels"].items():
        if isinstance(value, list):
            found.notes.append(
                f"{folder / NAME} gives labels as regions of several values; say which values each "
                "structure takes with data.labels."
            )
            return ""
        number, name = (key, value) if str(key).isdigit() else (value, key)
        if not str(number).isdigit():
            raise UserError(f"{folder / NAME}: labels gives {key!r} no whole number; mend it.")
        names[int(number)] = str(name)
    return values_text(names)


def _origin(found: Adopted) -> None:
    found.origin = {
        "label_values": f"labels in {NAME}",
        "sequence": f"channel_names or modality in {NAME}",
        "part": "imagesTr is training, imagesTs testing",
    }


NNUNET = Layout("nnunet", "nnU-Net", detect_nnunet, adopt_nnunet)
DECATHLON = Layout("decathlon", "Decathlon", detect_decathlon, adopt_decathlon)

"""Images and labels that share a name: ``images/ labels/``, ``x.png`` and ``x_mask.png``, or a
folder's only ``image.nii.gz`` and ``mask.nii.gz``."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

from fedshift import UserError
from fedshift.sites.adopt.files import Tree, ending, stem
from fedshift.sites.adopt.found import Adopted, Layout, Options, Row, choose, three

OF_IMAGES = ("images", "image", "imgs", "img", "scans", "volumes", "imagestr", "imagests")
OF_LABELS = (
    *("labels", "label", "masks", "mask", "segmentations", "segmentation", "segs", "seg"),
    *("annotations", "annotation", "gt", "ground_truth", "groundtruth", "labelstr", "labelsts"),
)
# The name before may be missing: the folder is then what an image and its label share.
_LABEL = re.compile(
    r"(?:(.+?)[-_. ])?(masks?|segmentation|segs?|gt|labels?|annotation|groundtruth)", re.I
)
_IMAGE = re.compile(r"(?:(.+?)[-_. ])?(image|img|im)", re.I)
_LAST = re.compile(r"(.+)[-_. ]([^-_. ]+)")

Key = tuple[tuple[str, ...], str]
"""What an image and its label share: the folders above, but for ``images`` or ``labels``; a name.
"""


def _key(file: Path) -> tuple[Key, str]:
    """What a file shares with its fellow, and which kind of label it is (empty: an image)."""
    folders = [part.lower() for part in file.parts[:-1]]
    kinds = [folder for folder in folders if folder in OF_LABELS]
    name = stem(file)
    match = _LABEL.fullmatch(name)
    kind = kinds[-1] if kinds else match[2].lower() if match else ""
    match = match or _IMAGE.fullmatch(name) if kind else _IMAGE.fullmatch(name)
    where = tuple(
        part
        for part, low in zip(file.parts[:-1], folders, strict=True)
        if low not in OF_LABELS and low not in OF_IMAGES
    )
    return (where, match[1] or "" if match else name), kind


class Pairs:
    """The files of a tree by what they share.

    Where no name fits whole, an image's last word is taken for its sequence, and a label's for its
    kind: ``images/p1_T1.nii.gz`` and ``labels/p1_tumour.nii.gz``. A label that ends in a sequence,
    ``p1_tumour_T1``, is of that one alone.
    """

    def __init__(self, tree: Tree) -> None:
        self.images: dict[Key, list[tuple[str, Path]]] = defaultdict(list)
        self.labels: dict[Key, list[tuple[str, Path]]] = defaultdict(list)
        self.astray: list[Path] = []
        sorted_out = any(_in(file, OF_IMAGES) for file in tree.images)
        for file in tree.images:
            key, kind = _key(file)
            if kind:
                self.labels[key].append((kind, file))
            elif sorted_out and not _in(file, OF_IMAGES):
                self.astray.append(file)
            else:
                self.images[key].append(("", file))
        self.loose = not self.joined
        self.sequence_of: dict[Path, str] = {}
        if self.loose:
            self.images = self._shortened(self.images)
            self._shorten_labels({word for files in self.images.values() for word, _ in files})

    @property
    def joined(self) -> int:
        """How many labels have an image."""
        return sum(len(fits) for key, fits in self.labels.items() if key in self.images)

    @staticmethod
    def _shortened(
        files: Mapping[Key, list[tuple[str, Path]]],
    ) -> dict[Key, list[tuple[str, Path]]]:
        """``files`` by their names without the last word, each with that word."""
        found: dict[Key, list[tuple[str, Path]]] = defaultdict(list)
        for (where, name), entries in files.items():
            match = _LAST.fullmatch(name)
            if match is None:
                found[where, name] += entries
            else:
                found[where, match[1]] += [(match[2], file) for _, file in entries]
        return found

    def _shorten_labels(self, sequences: set[str]) -> None:
        """Cut the labels' names down to names that images have, where they can be."""
        found: dict[Key, list[tuple[str, Path]]] = defaultdict(list)
        for (where, name), entries in self.labels.items():
            left = name
            match = _LAST.fullmatch(left)
            if match is not None and match[2] in sequences and (where, left) not in self.images:
                self.sequence_of |= {file: match[2] for _, file in entries}
                left = match[1]
            match = _LAST.fullmatch(left)
            if match is not None and (where, left) not in self.images:
                found[where, match[1]] += [(match[2], file) for _, file in entries]
            else:
                found[where, left] += entries
        self.labels = found


def _in(file: Path, folders: tuple[str, ...]) -> bool:
    return any(part.lower() in folders for part in file.parts[:-1])


def detect(tree: Tree) -> bool:
    return Pairs(tree).joined > 0


def adopt(tree: Tree, options: Options) -> Adopted:
    found = Adopted("pairs by name")
    pairs = Pairs(tree)
    found.left_out["images in neither a folder of images nor one of labels"] += [
        str(file) for file in pairs.astray
    ]
    images = _one_each(pairs, options, found)
    fitting = {}
    for key, (sequence, _) in images.items():
        fits = pairs.labels.get(key, [])
        own = [fit for fit in fits if pairs.sequence_of.get(fit[1]) == sequence]
        fitting[key] = own or [fit for fit in fits if fit[1] not in pairs.sequence_of]
        found.left_out["labels of other sequences"] += [
            str(file) for kind, file in fits if (kind, file) not in fitting[key]
        ]
    counts = Counter(kind for fits in fitting.values() for kind, _ in fits)
    chosen = set(counts)
    if options.label or any(len(fits) > 1 for fits in fitting.values()):
        words = {kind: str(n) for kind, n in counts.most_common()}
        chosen = choose("--label", "kinds of labels", words, options.label)
    joined = found.guesses[
        "labels joined to their images by the beginning of the name"
        if pairs.loose
        else "labels joined to their images by name alone"
    ]
    for key, (sequence, file) in images.items():
        fits = fitting[key]
        left = [label for kind, label in fits if kind in chosen]
        found.left_out["labels of another kind"] += [str(f) for k, f in fits if k not in chosen]
        photographs = [label for label in left if ending(label) in (".jpg", ".jpeg")]
        found.left_out["labels as JPEG, which changes their values"] += map(str, photographs)
        left = [label for label in left if label not in photographs]
        if len(left) > 1:
            raise UserError(
                f"{file} has {len(left)} labels: {three([str(label) for label in left])}; keep the "
                "one that counts, or name one kind with --label."
            )
        label = tree.root / left[0] if left else None
        found.rows.append(Row(tree.root / file, label, extra={"sequence": sequence}))
        joined += map(str, left)
    found.left_out["labels without an image"] += [
        str(file) for key, fits in pairs.labels.items() if key not in images for _, file in fits
    ]
    found.origin["sequence"] = "the last word of the names"
    return found


def _one_each(pairs: Pairs, options: Options, found: Adopted) -> dict[Key, tuple[str, Path]]:
    """One image for each name: of the sequence that was picked, where there are several."""
    counts = Counter(word for files in pairs.images.values() for word, _ in files)
    if options.sequence or (pairs.loose and any(len(f) > 1 for f in pairs.images.values())):
        words = {word or "(none)": str(n) for word, n in counts.most_common()}
        chosen = choose("--sequence", "sequences", words, options.sequence)
    else:
        chosen = {word or "(none)" for word in counts}
    images = {}
    twins = []
    for key, files in pairs.images.items():
        left = [(word, file) for word, file in files if (word or "(none)") in chosen]
        found.left_out["images of other sequences"] += [
            str(file) for word, file in files if (word or "(none)") not in chosen
        ]
        if len(left) > 1:
            twins.append(" and ".join(str(file) for _, file in left))
        elif left:
            images[key] = left[0]
    if twins:
        raise UserError(
            f"{len(twins)} names belong to several images: {three(twins)}; keep one of each."
        )
    return images


LAYOUT = Layout("pairs", "images and labels by name", detect, adopt)

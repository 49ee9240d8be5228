"""FeTS (Pati et al., 2021): brain tumours, institutions by ``partitioning_*.csv``."""

from __future__ import annotations

import re
from pathlib import Path

from fedshift.sites.adopt.files import Tree, read_table, stem
from fedshift.sites.adopt.found import Adopted, Layout, Options, Row, choose, one_of

VALUES = "0=background,1=necrotic core,2=oedema,4=enhancing tumour"
_FILE = re.compile(r"(?P<subject>.+)_(?P<sequence>flair|t1|t1ce|t2|seg)", re.I)


def _partitions(tree: Tree) -> list[Path]:
    return [f for f in tree.files if re.fullmatch(r"partitioning_\d+\.csv", f.name, re.I)]


def _scans(tree: Tree) -> list[tuple[re.Match[str], Path]]:
    files = [(_FILE.fullmatch(stem(file)), file) for file in tree.images]
    return [(m, f) for m, f in files if m and f.parent.name == m["subject"]]


def detect(tree: Tree) -> bool:
    return bool(_partitions(tree)) and bool(_scans(tree))


def adopt(tree: Tree, options: Options) -> Adopted:
    found = Adopted("FeTS")
    partitions = sorted(_partitions(tree))
    used = partitions[0]  # 1 is the split by institution; later ones cut that further
    site_of = {
        one_of(row, ("Subject_ID",)): one_of(row, ("Partition_ID",))
        for row in read_table(tree.root / used)
    }
    if len(partitions) > 1:
        found.notes.append(f"sites are those of {used}, the split by institution.")
    scans = _scans(tree)
    labels = {(f.parent, m["subject"]): f for m, f in scans if m["sequence"].lower() == "seg"}
    images = [(m, f) for m, f in scans if m["sequence"].lower() != "seg"]
    counts: dict[str, int] = {}
    for match, _ in images:
        counts[match["sequence"].lower()] = counts.get(match["sequence"].lower(), 0) + 1
    words = {name: str(n) for name, n in counts.items()}
    chosen = choose("--sequence", "sequences", words, options.sequence)
    subjects = set()
    for match, file in images:
        subjects.add((file.parent, match["subject"]))
        if match["sequence"].lower() not in chosen:
            found.left_out["images of other sequences"].append(str(file))
            continue
        label = labels.get((file.parent, match["subject"]))
        partition = site_of.get(match["subject"], "")
        found.rows.append(
            Row(
                tree.root / file,
                tree.root / label if label else None,
                subject=match["subject"],
                site=f"institution {partition}" if partition else "",
                label_values=VALUES if label else "",
                extra={"sequence": match["sequence"].lower(), "modality": "MR"},
            )
        )
    found.left_out["labels without an image"] += [
        str(file) for subject, file in labels.items() if subject not in subjects
    ]
    found.origin = {
        "site": f"Partition_ID in {used}",
        "subject": "the names of the folders (Subject_ID)",
        "label_values": "the set's documentation",
        "sequence": "the names",
        "modality": "the set's documentation",
    }
    return found


LAYOUT = Layout("fets", "FeTS", detect, adopt)

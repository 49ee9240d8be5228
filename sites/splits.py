"""Splits of a site into train, val and test, by subject.

- Subjects with a label are shuffled by a generator of (seed, site) and dealt out by the fractions,
  at least one to each split; a subject's images stay together. With a fraction of 0 there is no
  val split: two subjects are enough then, and blocks are cut for train and test alone.
- Subjects without any label train only (unlabelled).
- Two labelled subjects: one is the test split, the other is cut into train and val blocks.
- One labelled subject: its slices are cut into contiguous train, val and test blocks.
- Blocks are cut within each volume, over its labelled slices, with a gap dropped between; of
  single-slice images the sequence of images is cut instead.
- A site without labels trains only; an unseen site tests only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedshift import derive_seed
from fedshift.sites.findings import number_of
from fedshift.sites.types import SPLITS, Split


@dataclass(frozen=True)
class Item:
    """An image to be split: whose it is, and which of its slices (S,) carry a label."""

    subject: str
    labelled: np.ndarray


@dataclass(frozen=True)
class Part:
    """Slices ``start`` to ``stop`` (exclusive) of item ``index`` belong to ``split``."""

    index: int
    split: Split
    start: int
    stop: int


def split_site(
    items: Sequence[Item],
    *,
    role: str,
    fractions: Mapping[Split, float],
    gap: int,
    seed: int,
    site: str,
) -> tuple[list[Part], list[str]]:
    """Assign every item; return its parts in the items' order, and what a reader must know."""
    if role == "unseen":
        return [_whole(items, k, "test") for k in range(len(items))], []
    subjects = sorted({item.subject for item in items if item.labelled.any()})
    if not subjects:
        parts = [_whole(items, k, "train") for k in range(len(items))]
        return parts, ["the site has no labels: all of its images train, unlabelled"]
    shuffled = np.random.default_rng(derive_seed(seed, site, "split")).permutation(subjects)
    order = [str(subject) for subject in shuffled]
    without = [k for k, item in enumerate(items) if item.subject not in set(order)]
    parts = [_whole(items, k, "train") for k in without]
    notes = []
    if without:
        notes.append(
            number_of(
                len(without),
                "image of subjects without labels trains only, unlabelled",
                "images of subjects without labels train only, unlabelled",
            )
        )
    splits: tuple[Split, ...] = tuple(split for split in SPLITS if fractions[split] > 0)
    if len(splits) < len(SPLITS):
        notes.append("data.split leaves nothing for validation: nothing is validated here")
    if len(order) >= len(splits):
        split_of = _deal(order, splits, fractions)
        parts += [
            _whole(items, k, split_of[item.subject])
            for k, item in enumerate(items)
            if item.subject in split_of
        ]
    else:
        cut = splits
        if len(order) == 2:
            cut = ("train", "val")
            tested = order.pop()
            parts += [_whole(items, k, "test") for k, i in enumerate(items) if i.subject == tested]
            notes.append(
                "two labelled subjects: one is the test split, the other is cut into train and val"
            )
        else:
            notes.append(
                f"a single labelled subject: {', '.join(splits[:-1])} and test are blocks of its "
                "slices, not independent subjects"
            )
        own = [k for k, item in enumerate(items) if item.subject == order[0]]
        blocks, remarks = _cut(items, own, cut, fractions, gap)
        parts += blocks
        notes += remarks
    return sorted(parts, key=lambda part: (part.index, part.start)), notes


def _whole(items: Sequence[Item], index: int, split: Split) -> Part:
    return Part(index, split, 0, len(items[index].labelled))


def _deal(
    order: Sequence[str], splits: Sequence[Split], fractions: Mapping[Split, float]
) -> dict[str, Split]:
    counts = _counts(len(order), splits, fractions)
    names = [split for split in splits for _ in range(counts[split])]
    return dict(zip(order, names, strict=True))


def _counts(
    total: int, splits: Sequence[Split], fractions: Mapping[Split, float]
) -> dict[Split, int]:
    """Share ``total`` >= len(splits) by the fractions, at least one each; train takes the rest."""
    whole = sum(fractions[split] for split in splits)
    counts = {split: max(1, round(total * fractions[split] / whole)) for split in splits[1:]}
    while sum(counts.values()) > total - 1:
        largest = max(counts, key=lambda split: counts[split])
        counts[largest] -= 1
    return {splits[0]: total - sum(counts.values()), **counts}


def _cut(
    items: Sequence[Item],
    own: Sequence[int],
    splits: Sequence[Split],
    fractions: Mapping[Split, float],
    gap: int,
) -> tuple[list[Part], list[str]]:
    """Cut one subject's images into blocks."""
    parts: list[Part] = []
    dropped = whole = 0
    if all(len(items[k].labelled) == 1 for k in own):
        blocks = _blocks(np.array([items[k].labelled[0] for k in own]), splits, fractions, gap)
        for split, start, stop in blocks:
            parts += [Part(k, split, 0, 1) for k in own[start:stop]]
        dropped, whole = len(own) - len(parts), int(len(blocks) == 1)
        unit = "images"
    else:
        for k in own:
            blocks = _blocks(items[k].labelled, splits, fractions, gap)
            parts += [Part(k, split, start, stop) for split, start, stop in blocks]
            dropped += len(items[k].labelled) - sum(stop - start for _, start, stop in blocks)
            whole += len(blocks) == 1
        unit = "slices"
    notes = []
    if dropped:
        notes.append(f"{dropped} {unit} between the blocks are left out of every split")
    if whole:
        few = "the subject's images are" if unit == "images" else f"{whole} volumes are"
        notes.append(f"{few} too few or too short to be cut, and train whole")
    return parts, notes


def _blocks(
    labelled: np.ndarray, splits: Sequence[Split], fractions: Mapping[Split, float], gap: int
) -> list[tuple[Split, int, int]]:
    """Contiguous blocks (split, start, stop), ``gap`` labelled slices dropped between.

    The fractions are of the labelled slices; unlabelled ones at the two ends go with the block
    there. A single train block when there are too few labelled slices for all.
    """
    where = np.flatnonzero(labelled)
    usable = len(where) - gap * (len(splits) - 1)
    if usable < len(splits):
        return [(splits[0], 0, len(labelled))]
    blocks = []
    first = 0
    for split, count in _counts(usable, splits, fractions).items():
        last = first + count - 1
        start = 0 if first == 0 else int(where[first])
        stop = len(labelled) if last == len(where) - 1 else int(where[last]) + 1
        blocks.append((split, start, stop))
        first = last + 1 + gap
    return blocks

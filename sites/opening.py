"""Opening a site: its images prepared through the cache, split, as memory-mapped cases."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedshift import UserError
from fedshift.sites import prepare, readers
from fedshift.sites.cache import ARRAYS, ArrayWriter, Cache, Entry, code_hash, digest
from fedshift.sites.findings import FileFault, listed
from fedshift.sites.geometry import Grid
from fedshift.sites.labels import LabelMapError, annotated_classes, is_negative, legend_of
from fedshift.sites.legend import Legend
from fedshift.sites.manifest import read_manifest
from fedshift.sites.settings import DataSettings
from fedshift.sites.splits import Item, split_site
from fedshift.sites.types import (
    IGNORED,
    SPLITS,
    Case,
    ImageSource,
    Label,
    SiteData,
    SiteSpec,
    Split,
)

Told = tuple[tuple[int, ...] | None, bool]
"""The classes that an image's label tells of (None: all), and whether an empty one is negative."""


def open_site(site: SiteSpec, structures: Sequence[str], data: DataSettings, seed: int) -> SiteData:
    """Open ``site``; arrays are memory-mapped from the cache, which is filled when needed.

    An image that cannot be used is left out and named in the notes. ``data.unlabelled_sites``
    hides the labels of the training and validation splits; the test split keeps its own, so that
    the site can be scored.

    Raises:
        UserError: nothing is left to train on (or, unseen, to test on), or a label value is
            outside the map.
    """
    entry = _entry(site, structures, data)
    cases = entry.meta["cases"]
    left_out = [f"row {site.images[k].row}: {code}" for k, code in entry.meta["left_out"]]
    if not cases:
        raise UserError(
            f"the site {site.name} has no usable image out of {len(site.images)} "
            f"({listed(left_out) or 'none is listed'}); mend them: `fedshift sites check` says how."
        )
    items = [
        Item(site.images[meta["image"]].subject, np.array(meta["labelled"], bool)) for meta in cases
    ]
    parts, notes = split_site(
        items,
        role=site.role,
        fractions=data.split,
        gap=data.split_gap,
        seed=seed,
        site=site.name,
    )
    hidden = site.name in data.unlabelled_sites and site.role == "train"
    splits: dict[Split, list[Case]] = {split: [] for split in SPLITS}
    for part in parts:
        meta = cases[part.index]
        source = site.images[meta["image"]]
        case = _case(entry, meta, source, part.start, part.stop)
        case = replace(
            case,
            annotates=annotated_classes(source, structures),
            ignores=IGNORED in meta["shows"],
        )
        if (part.start, part.stop) != (0, len(meta["labelled"])):
            case = replace(case, id=f"{case.id}:{part.split}")
        if hidden and part.split != "test":
            case = replace(case, labels={}, labelled=np.zeros_like(case.labelled))
        splits[part.split].append(case)
    if site.role == "train" and not splits["train"]:
        raise UserError(
            f"the site {site.name} has no training subject; add one or list it in "
            "data.unseen_sites."
        )
    if hidden:
        notes.append("data.unlabelled_sites hides the training and validation labels")
    notes = _notes(site, cases, structures, data) + notes
    if left_out:
        notes.append(f"left out: {len(left_out)} of {len(site.images)} images ({listed(left_out)})")
    return SiteData(
        site.name,
        site.role,
        tuple(structures),
        {split: tuple(found) for split, found in splits.items()},
        tuple(notes),
    )


def pooled_site(sites: Sequence[SiteData], name: str = "all") -> SiteData:
    """The training and validation cases of all training sites as one: the upper bound.

    For simulation only: it is what a federation avoids. Its test split is empty.
    """
    chosen = [site for site in sites if site.role == "train"]
    if not chosen:
        raise UserError("no site trains, so there is nothing to pool.")
    if len({site.parts for site in chosen}) > 1 or len({site.size for site in chosen}) > 1:
        raise UserError("the sites differ in parts or grid size and cannot be pooled.")
    splits: dict[Split, tuple[Case, ...]] = {
        split: tuple(case for site in chosen for case in site.splits[split])
        for split in ("train", "val")
    }
    note = f"the images of {len(chosen)} sites in one place: simulation only"
    return SiteData(name, "train", chosen[0].parts, {**splits, "test": ()}, (note,))


def _case(
    entry: Entry, meta: Mapping[str, Any], source: ImageSource, start: int, stop: int
) -> Case:
    first = meta["first"]
    grid = Grid(
        tuple(meta["shape"]), tuple(meta["native_mm"]), tuple(meta["grid_mm"]), meta["size"]
    )
    labels = {}
    labelled = np.array(meta["labelled"][start:stop], bool)
    if labelled.any():
        mask = native = entry.label[first + start : first + stop]
        if not grid.identity:
            pixels = grid.shape[0] * grid.shape[1]
            offset = meta["reference"]
            flat = entry.reference[offset + start * pixels : offset + stop * pixels]
            native = flat.reshape(stop - start, *grid.shape)
        labels["mask"] = Label(mask, native)
    return Case(
        id=source.case,
        subject=source.subject,
        session=source.session,
        domain=source.domain,
        image=entry.image[first + start : first + stop, None],
        labels=labels,
        labelled=labelled,
        spacing_mm=(meta["slice_mm"], *grid.spacing_mm),
        native_spacing_mm=(meta["slice_mm"], *grid.native_mm),
        grid=grid,
    )


def _notes(
    site: SiteSpec,
    cases: Sequence[Mapping[str, Any]],
    structures: Sequence[str],
    data: DataSettings,
) -> list[str]:
    notes = _annotation_notes(site, cases, structures)
    unknown = sum(not meta["spacing_known"] for meta in cases)
    if unknown:
        notes.append(
            f"pixel spacing is unknown for {unknown} of {len(cases)} images: their distances are "
            "in pixels and they are not resampled"
        )
    cropped = [meta["cropped"] for meta in cases if meta["cropped"] > 0]
    if cropped:
        notes.append(
            f"the {data.size} x {data.size} grid cuts off labelled pixels in {len(cropped)} of "
            f"{len(cases)} images (up to {max(cropped):.1%}); raise data.size or data.spacing_mm"
        )
    unlabelled = [
        meta
        for meta in cases
        if site.images[meta["image"]].label_path and not any(meta["labelled"])
    ]
    if unlabelled:
        notes.append(f"{len(unlabelled)} images have an empty mask and count as unlabelled")
    negative = sum(
        is_negative(site.images[meta["image"]], data)
        and any(meta["labelled"])
        and not set(meta["shows"]) - {0, IGNORED}
        for meta in cases
    )
    if negative:
        notes.append(f"{negative} images have an empty mask and count as negative: nothing there")
    partly = [meta["labelled"] for meta in cases if any(meta["labelled"])]
    missing = sum(len(flags) - sum(flags) for flags in partly)
    if missing:
        notes.append(f"{missing} slices of labelled volumes have no label and count as unlabelled")
    ignored = sum(IGNORED in meta["shows"] for meta in cases)
    if ignored:
        notes.append(f"{ignored} images have pixels that are neither trained on nor scored")
    if data.site_pattern is not None and data.manifest is not None:
        unmatched = read_manifest(data).unmatched
        if unmatched:
            notes.append(f"{unmatched} rows of the manifest match no site (data.site_pattern)")
    return notes


def _annotation_notes(
    site: SiteSpec, cases: Sequence[Mapping[str, Any]], structures: Sequence[str]
) -> list[str]:
    """Which structures the labels tell of, where not of all."""
    partly: Counter[tuple[str, ...]] = Counter()
    left_out = 0
    for meta in cases:
        source = site.images[meta["image"]]
        if source.annotates is None or not any(meta["labelled"]):
            continue
        partly[source.annotates] += 1
        told = annotated_classes(source, structures) or ()
        left_out += bool(set(meta["shows"]) - {0, IGNORED, *told})
    notes = [
        f"annotates {', '.join(names)} only, in {number} of {len(cases)} images: the other "
        "structures are neither trained as background nor scored there"
        for names, number in sorted(partly.items())
    ]
    if left_out:
        notes.append(
            f"{left_out} images show structures that they are not said to annotate: these pixels "
            "count as not annotated"
        )
    return notes


def _entry(site: SiteSpec, structures: Sequence[str], data: DataSettings) -> Entry:
    """The site's arrays: opened by the state of its files, or built by reading each once."""
    meanings = legends(site, structures, data)
    told = [
        (annotated_classes(image, structures), is_negative(image, data)) for image in site.images
    ]
    recipe = json.dumps(
        {
            "code": code_hash(),
            "settings": [
                data.spacing_mm,
                data.default_spacing_mm,
                data.size,
                data.slice_axis,
                data.normalise,
                data.window,
            ],
            "images": [
                [
                    image.path,
                    image.label_path,
                    image.spacing_mm,
                    dict(image.phantom) if image.phantom is not None else None,
                    legend and [sorted(legend.values.items()), sorted(legend.names.items())],
                    annotated,
                    negative,
                ]
                for image, legend, (annotated, negative) in zip(
                    site.images, meanings, told, strict=True
                )
            ],
        }
    )
    cache = Cache(data.cache)
    key = digest(recipe, *(readers.state(image.path, image.label_path) for image in site.images))
    return cache.find(key) or cache.store(
        key, lambda folder: _build(folder, recipe, site, meanings, told, data)
    )


def legends(site: SiteSpec, structures: Sequence[str], data: DataSettings) -> list[Legend | None]:
    """For each image, what its label file's values mean; None for a phantom or without label.

    Raises:
        LabelMapError: a name of the table is no structure.
    """
    table = read_manifest(data).label_values if data.manifest is not None else {}
    return [
        legend_of(image, structures, data, table.get(image.label_path, ""))
        if image.label_path
        else None
        for image in site.images
    ]


def _build(
    folder: Path,
    recipe: str,
    site: SiteSpec,
    meanings: Sequence[Legend | None],
    told: Sequence[Told],
    data: DataSettings,
) -> str:
    """Prepare all images into ``folder``; return the key of their content."""
    phantom = site.images[0].phantom if site.images else None
    size = int(phantom["size"]) if phantom is not None else data.size
    rows: dict[str, tuple[int, ...]] = {"image": (size, size), "label": (size, size)}
    hashes: list[str] = []
    cases: list[dict[str, Any]] = []
    left_out: list[tuple[int, str]] = []
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(
                ArrayWriter(folder / f"{name}.npy", dtype, rows.get(name, ()))
            )
            for name, dtype in ARRAYS.items()
        }
        for number, image in enumerate(site.images):
            try:
                prepared, content = _prepare(image, meanings[number], told[number], data)
            except LabelMapError:
                raise
            except UserError as error:
                # By row and code: notes leave the site, and a path may hold a patient's name.
                code = error.code if isinstance(error, FileFault) else "unreadable"
                left_out.append((number, code))
                hashes.append(f"left out: {code}")
                continue
            hashes.append(content)
            cases.append(
                {
                    "image": number,
                    "first": writers["image"].length,
                    "reference": writers["reference"].length,
                    "labelled": prepared.labelled.tolist(),
                    "shape": prepared.grid.shape,
                    "native_mm": prepared.grid.native_mm,
                    "grid_mm": prepared.grid.spacing_mm,
                    "size": prepared.grid.size,
                    "slice_mm": prepared.slice_mm,
                    "spacing_known": prepared.spacing_known,
                    "cropped": prepared.cropped,
                    "shows": prepared.shows,
                }
            )
            writers["image"].append(prepared.image)
            if prepared.label is None or prepared.reference is None:
                # Zeros keep the slices of the three arrays in step.
                writers["label"].append(np.zeros(prepared.image.shape, np.uint8))
            else:
                writers["label"].append(prepared.label)
                if not prepared.grid.identity:
                    writers["reference"].append(prepared.reference.ravel())
        shapes = {name: (writers[name].length, *rows.get(name, ())) for name in ARRAYS}
    meta = {"cases": cases, "left_out": left_out, "shapes": shapes}
    (folder / "meta.json").write_text(json.dumps(meta))
    return digest(recipe, *hashes)


def _prepare(
    image: ImageSource, legend: Legend | None, told: Told, data: DataSettings
) -> tuple[prepare.Prepared, str]:
    """Prepare one image; return it and the hash of the bytes it came from."""
    annotated, negative = told
    if image.phantom is not None:
        return prepare.prepare_phantom(image, data, annotated), ""  # the recipe is its content
    contents = readers.read(Path(image.path))
    label = readers.read(Path(image.label_path)) if image.label_path else None
    content = digest(*(data for _, data in [*contents, *(label or [])]))
    # Only a row can say so of an image without a mask, which data.empty_masks does not mean.
    negative = negative and (label is not None or image.empty == "negative")
    prepared = prepare.prepare_file(
        image, contents, label, legend, data, annotated=annotated, negative=negative
    )
    return prepared, content

"""Opening a site: its images prepared through the cache, split, as memory-mapped cases."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedshift import Tellable, UserError
from fedshift.sites import prepare, readers
from fedshift.sites.cache import ArrayWriter, Cache, Entry, code_hash, digest
from fedshift.sites.findings import FileFault, listed, number_of
from fedshift.sites.geometry import Grid
from fedshift.sites.labels import Form, form_of
from fedshift.sites.labels.annotation import annotated_classes, is_negative
from fedshift.sites.labels.meaning import LabelMapError, legend_of
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
"""The parts that an image's label tells of (None: all), and whether an empty one is negative."""


def open_site(site: SiteSpec, parts: Sequence[str], data: DataSettings, seed: int) -> SiteData:
    """Open ``site``; arrays are memory-mapped from the cache, which is filled when needed.

    An image that cannot be used is left out and named in the notes. ``data.unlabelled_sites``
    hides the labels of the training and validation splits; the test split keeps its own, so that
    the site can be scored.

    Raises:
        UserError: nothing is left to train on (or, unseen, to test on), or a label value is
            outside the map.
    """
    form = form_of(data)
    entry = _entry(site, parts, data)
    cases = entry.meta["cases"]
    left_out = [f"row {site.images[k].row}: {code}" for k, code in entry.meta["left_out"]]
    if not cases:
        raise Tellable(
            f"the site {site.name} has no usable image out of {len(site.images)} "
            f"({listed(left_out) or 'none is listed'}); mend them: `fedshift sites check` says how."
        )
    items = [
        Item(site.images[meta["image"]].subject, np.array(meta["labelled"], bool)) for meta in cases
    ]
    blocks, notes = split_site(
        items,
        role=site.role,
        fractions=data.split,
        gap=data.split_gap,
        seed=seed,
        site=site.name,
    )
    hidden = site.name in data.unlabelled_sites and site.role == "train"
    splits: dict[Split, list[Case]] = {split: [] for split in SPLITS}
    for block in blocks:
        meta = cases[block.index]
        source = site.images[meta["image"]]
        case = _case(entry, meta, source, form, block.start, block.stop)
        case = replace(
            case,
            annotates=annotated_classes(source, parts),
            ignores=_ignores(meta, form),
        )
        if (block.start, block.stop) != (0, len(meta["labelled"])):
            case = replace(case, id=f"{case.id}:{block.split}")
        if hidden and block.split != "test":
            case = replace(case, labels={}, labelled=np.zeros_like(case.labelled))
        splits[block.split].append(case)
    if site.role == "train" and not splits["train"]:
        raise Tellable(
            f"the site {site.name} has no training subject; add one or list it in "
            "data.unseen_sites."
        )
    if hidden:
        notes.append("data.unlabelled_sites hides the training and validation labels")
    notes = _notes(site, cases, parts, data) + notes
    if left_out:
        notes.append(f"left out: {len(left_out)} of {len(site.images)} images ({listed(left_out)})")
    return SiteData(
        site.name,
        site.role,
        tuple(parts),
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
    entry: Entry, meta: Mapping[str, Any], source: ImageSource, form: Form, start: int, stop: int
) -> Case:
    first = meta["first"]
    grid = Grid(
        tuple(meta["shape"]), tuple(meta["native_mm"]), tuple(meta["grid_mm"]), meta["size"]
    )
    labels = {}
    labelled = np.array(meta["labelled"][start:stop], bool)
    if labelled.any():
        found = {}
        for name, (offset, row) in meta["labels"].items():
            step = math.prod(row)
            flat = entry.arrays[name][offset + start * step : offset + stop * step]
            found[name] = flat.reshape(stop - start, *row)
        labels[form.name] = Label(found["label"], found.get("native", found["label"]))
    return Case(
        id=source.case,
        subject=source.subject,
        session=source.session,
        domain=source.domain,
        image=entry.arrays["image"][first + start : first + stop, None],
        labels=labels,
        labelled=labelled,
        spacing_mm=(meta["slice_mm"], *grid.spacing_mm),
        native_spacing_mm=(meta["slice_mm"], *grid.native_mm),
        grid=grid,
    )


def _ignores(meta: Mapping[str, Any], form: Form) -> bool:
    """Whether a mask holds pixels that are not to count."""
    return form.by_value and IGNORED in meta["shows"]


def _notes(
    site: SiteSpec,
    cases: Sequence[Mapping[str, Any]],
    parts: Sequence[str],
    data: DataSettings,
) -> list[str]:
    form = form_of(data)
    nothing = f"an empty {form.name}" if form.by_value else f"no {form.marks}"
    notes = _annotation_notes(site, cases, parts, form)
    unknown = sum(
        not meta["spacing_known"] and not readers.is_matrix(site.images[meta["image"]].path)
        for meta in cases
    )
    if unknown:
        notes.append(
            f"pixel spacing is unknown for {unknown} of {len(cases)} images: their distances are "
            "in pixels and they are not resampled"
        )
    cropped = [meta["cropped"] for meta in cases if meta["cropped"] > 0]
    if cropped:
        notes.append(
            f"the {data.size} x {data.size} grid cuts off {form.marks} in {len(cropped)} of "
            f"{len(cases)} images (up to {max(cropped):.1%}); raise data.size or data.spacing_mm"
        )
    unlabelled = [
        meta for meta in cases if site.images[meta["image"]].labelled and not any(meta["labelled"])
    ]
    if unlabelled:
        notes.append(
            number_of(
                len(unlabelled),
                f"image has {nothing} and counts as unlabelled",
                f"images have {nothing} and count as unlabelled",
            )
        )
    negative = sum(
        is_negative(site.images[meta["image"]], data)
        and any(meta["labelled"])
        and not set(meta["shows"]) - {0, IGNORED}
        for meta in cases
    )
    if negative and parts:
        notes.append(
            number_of(
                negative,
                f"image has {nothing} and counts as negative: nothing there",
                f"images have {nothing} and count as negative: nothing there",
            )
        )
    partly = [meta["labelled"] for meta in cases if any(meta["labelled"])]
    missing = sum(len(flags) - sum(flags) for flags in partly)
    if missing:
        notes.append(
            number_of(
                missing,
                "slice of labelled volumes has no label and counts as unlabelled",
                "slices of labelled volumes have no label and count as unlabelled",
            )
        )
    ignored = sum(_ignores(meta, form) for meta in cases)
    if ignored:
        images = number_of(ignored, "image has", "images have")
        notes.append(f"{images} pixels that are neither trained on nor scored")
    if data.site_pattern is not None and data.manifest is not None:
        unmatched = read_manifest(data).unmatched
        if unmatched:
            rows = number_of(unmatched, "row of the manifest matches", "rows of the manifest match")
            notes.append(f"{rows} no site (data.site_pattern)")
    return notes


def _annotation_notes(
    site: SiteSpec, cases: Sequence[Mapping[str, Any]], parts: Sequence[str], form: Form
) -> list[str]:
    """Which parts the labels tell of, where not of all."""
    partly: Counter[tuple[str, ...]] = Counter()
    left_out = 0
    for meta in cases:
        source = site.images[meta["image"]]
        if source.annotates is None or not any(meta["labelled"]):
            continue
        partly[source.annotates] += 1
        told = annotated_classes(source, parts) or ()
        left_out += bool(set(meta["shows"]) - {0, IGNORED, *told})
    notes = [
        f"annotates {', '.join(names)} only, in {number} of {len(cases)} images: the other parts "
        "are neither trained as absent nor scored there"
        for names, number in sorted(partly.items())
    ]
    if left_out:
        notes.append(
            number_of(
                left_out,
                "image shows parts that it is not said to annotate: ",
                "images show parts that they are not said to annotate: ",
            )
            + f"these {form.marks} count as not annotated"
        )
    return notes


def _entry(site: SiteSpec, parts: Sequence[str], data: DataSettings) -> Entry:
    """The site's arrays: opened by the state of its files, or built by reading each once."""
    meanings = legends(site, parts, data)
    told = [(annotated_classes(image, parts), is_negative(image, data)) for image in site.images]
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
                data.form,
                data.points_in,
                data.normalise_pair,
            ],
            "images": [
                [
                    image.path,
                    image.label_path,
                    image.category,
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
        key, lambda folder: _build(folder, recipe, site, meanings, told, len(parts), data)
    )


def legends(site: SiteSpec, parts: Sequence[str], data: DataSettings) -> list[Legend | None]:
    """For each image, what its label's values mean; None for a phantom or without label.

    Raises:
        LabelMapError: a name of the table is no part.
    """
    table = read_manifest(data).label_values if data.manifest is not None else {}
    return [
        legend_of(image, parts, data, table.get(image.label_path, "")) if image.labelled else None
        for image in site.images
    ]


def _build(
    folder: Path,
    recipe: str,
    site: SiteSpec,
    meanings: Sequence[Legend | None],
    told: Sequence[Told],
    parts: int,
    data: DataSettings,
) -> str:
    """Prepare all images into ``folder``; return the key of their content."""
    phantom = site.images[0].phantom if site.images else None
    size = int(phantom["size"]) if phantom is not None else data.size
    kind = form_of(data).dtype
    hashes: list[str] = []
    cases: list[dict[str, Any]] = []
    left_out: list[tuple[int, str]] = []
    with ExitStack() as stack:

        def writer(name: str, dtype: type, row: tuple[int, ...] = ()) -> ArrayWriter:
            return stack.enter_context(ArrayWriter(folder / f"{name}.npy", dtype, row))

        images = writer("image", np.float32, (size, size))
        # Flat, because the rows of some forms differ in length from image to image.
        labels = {name: writer(name, kind) for name in ("label", "native")}
        for number, image in enumerate(site.images):
            try:
                prepared, content = _prepare(image, meanings[number], told[number], parts, data)
            except LabelMapError:
                raise
            except UserError as error:
                # By row and code: notes leave the site, and a path may hold a patient's name.
                code = error.code if isinstance(error, FileFault) else "unreadable"
                left_out.append((number, code))
                hashes.append(f"left out: {code}")
                continue
            hashes.append(content)
            kept = {}
            if prepared.label is not None:
                kept["label"] = prepared.label.grid
                if prepared.label.native is not prepared.label.grid:
                    kept["native"] = prepared.label.native
            cases.append(
                {
                    "image": number,
                    "first": images.length,
                    "labels": {
                        name: (labels[name].length, array.shape[1:]) for name, array in kept.items()
                    },
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
            images.append(prepared.image)
            for name, array in kept.items():
                labels[name].append(array.ravel())
        arrays = {name: one.written for name, one in {"image": images, **labels}.items()}
    meta = {"cases": cases, "left_out": left_out, "arrays": arrays}
    (folder / "meta.json").write_text(json.dumps(meta))
    return digest(recipe, *hashes)


def _prepare(
    image: ImageSource, legend: Legend | None, told: Told, parts: int, data: DataSettings
) -> tuple[prepare.Prepared, str]:
    """Prepare one image; return it and the hash of the bytes it came from."""
    annotated, negative = told
    if image.phantom is not None:
        return prepare.prepare_phantom(image, data, annotated), ""  # the recipe is its content
    contents = readers.read(Path(image.path))
    label = form_of(data).read(image) if image.labelled else None
    content = digest(*(data for _, data in [*contents, *(label or [])]))
    # Only a row can say so of an image without a label, which data.empty_masks does not mean.
    negative = negative and (label is not None or image.empty == "negative")
    prepared = prepare.prepare_file(
        image,
        contents,
        label,
        legend,
        data,
        parts=parts,
        annotated=annotated,
        negative=negative,
    )
    return prepared, content

"""DICOM images: a file, or a folder that holds one series; by pydicom."""

from __future__ import annotations

import io
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

from fedshift.sites.findings import FileFault, Remark
from fedshift.sites.readers.dicom_frames import Frame, frames, readable
from fedshift.sites.readers.dicom_pixels import Plane, planes, polarity, stack_values
from fedshift.sites.readers.dicom_stack import stack
from fedshift.sites.readers.files import file_list
from fedshift.sites.readers.volume import Contents, Volume

# Objects with pixels or contours that are drawn on images; labels are read elsewhere.
DRAWN = {"SEG", "RTSTRUCT"}
NO_IMAGES = {"RTDOSE", "RTPLAN", "SR", "PR", "KO", "REG", "DOC", "PLAN"}


def dicom_domain(path: Path) -> tuple[str, str]:
    """Vendor and scanner from the tags of a DICOM file or of the first image of a folder.

    Empty texts where the tags or the file are missing: reading the image later says why.
    """
    import pydicom

    tags = ["Manufacturer", "ManufacturerModelName", "Modality", "Rows"]
    if not path.exists():
        return "", ""
    for file in file_list(path):
        try:
            with readable(file):
                header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags)
                found = header.get("Manufacturer"), header.get("ManufacturerModelName")
                image = _is_image(header)
        except FileFault:
            continue
        if image:
            return str(found[0] or "").strip(), str(found[1] or "").strip()
    return "", ""


def read_dicom(path: Path, contents: Contents, label: bool = False) -> Volume:
    """Read one series of classic or enhanced files, or (``label``) numbers saved as one.

    Objects beside it that are no images are left out; ``Volume.remarks`` counts those that are
    not drawn on it.

    Raises:
        FileFault: no single, whole, straight stack of readable images.
    """
    with readable(path):
        return _volume(path, _datasets(contents), label)


def _volume(path: Path, files: list[tuple[Path, Any]], label: bool) -> Volume:
    images, remarks = _images(path, files)
    series = {str(dataset.get("SeriesInstanceUID", "")) for _, dataset in images}
    if len(series) > 1:
        raise FileFault(
            "several-series",
            path,
            f"holds {len(series)} DICOM series",
            "put each in a folder of its own",
        )
    for file, dataset in images:
        if "TotalPixelMatrixColumns" in dataset:
            raise FileFault(
                "tiled",
                file,
                "is a whole-slide image, whose frames are tiles and no slices",
                "export the region and magnification to be used as an image of its own",
            )
    shapes = {(dataset.get("Rows"), dataset.get("Columns")) for _, dataset in images}
    if len(shapes) > 1:
        raise FileFault(
            "mixed-slices",
            path,
            f"mixes slices of different shapes {sorted(shapes)}",
            "export each as a series of its own",
        )
    made = stack(path, [frame for file, dataset in images for frame in frames(file, dataset)])
    layers = _planes(made.frames, label)
    first = made.frames[0].dataset
    contradiction = None if label else polarity(made.frames[0])[1]
    remarks += [contradiction] if contradiction else []
    # (S, R, C) -> (i, j, k) = (columns, rows, slices)
    return Volume(
        stack_values(layers).transpose(2, 1, 0),
        made.affine,
        made.spacing_mm,
        modality=str(first.get("Modality") or ""),
        remarks=(*remarks, *made.remarks),
        frame=str(first.get("FrameOfReferenceUID") or ""),
        series=str(first.get("SeriesInstanceUID") or ""),
    )


def _datasets(contents: Contents) -> list[tuple[Path, Any]]:
    import pydicom

    files = []
    for file, data in contents:
        with readable(file, "is not a readable DICOM file"):
            files.append((file, pydicom.dcmread(io.BytesIO(data))))
    return files


def _is_image(dataset: Any) -> bool:
    return "Rows" in dataset and dataset.get("Modality") not in DRAWN | NO_IMAGES


def _images(
    path: Path, files: list[tuple[Path, Any]]
) -> tuple[list[tuple[Path, Any]], list[Remark]]:
    """The images among ``files``, and remarks on what else there is."""
    images = [pair for pair in files if _is_image(pair[1])]
    others = [dataset for _, dataset in files if not _is_image(dataset)]
    if not images:
        raise FileFault(
            "no-image",
            path,
            f"holds no DICOM image with pixels, only {_kinds(others)}",
            "give the image series",
        )
    remarks = []
    strange = [dataset for dataset in others if dataset.get("Modality") not in DRAWN]
    if strange:
        remarks.append(
            Remark(
                "other-objects",
                f"also holds {_kinds(strange)}, left out of the image",
                "move what does not belong to the series elsewhere",
            )
        )
    kept = [pair for pair in images if "LOCALIZER" not in (pair[1].get("ImageType") or [])]
    if 0 < len(kept) < len(images):
        remarks.append(
            Remark(
                "localizers",
                f"also holds {len(images) - len(kept)} localizers, left out of the image",
                "move them elsewhere",
            )
        )
        images = kept
    return images, remarks


def _kinds(datasets: list[Any]) -> str:
    kinds = Counter(_kind(dataset) for dataset in datasets)
    return ", ".join(f"{number} x {kind}" for kind, number in kinds.most_common(3))


def _kind(dataset: Any) -> str:
    """The object's class in words, such as "Basic Text SR Storage"."""
    identifier = dataset.get("SOPClassUID")
    return getattr(identifier, "name", "") or str(dataset.get("Modality") or "unknown object")


def _planes(ordered: list[Frame], label: bool) -> list[Plane]:
    """The planes of ``ordered``, each file decoded once."""
    decoded: dict[tuple[int, int], Plane] = {}
    by_file = sorted(ordered, key=lambda frame: (id(frame.dataset), frame.index))
    for identifier, group in groupby(by_file, key=lambda frame: id(frame.dataset)):
        own = list(group)
        for frame, plane in zip(own, planes(own, label), strict=True):
            decoded[identifier, frame.index] = plane
    return [decoded[id(frame.dataset), frame.index] for frame in ordered]

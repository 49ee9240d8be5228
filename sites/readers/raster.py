"""Pictures without a place in space: PNG, BMP, JPEG and TIFF, by Pillow."""

from __future__ import annotations

import io
import re
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from fedshift.sites.findings import FileFault, Remark
from fedshift.sites.readers.volume import UNITS_MM, Volume

FORMATS = {
    ".png": "PNG",
    ".bmp": "BMP",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
_ORIENTATION = 0x0112
_COLOURS = ("RGB", "RGBA", "RGBX", "LA", "P", "PA", "CMYK", "YCbCr")
_GREYS = ("1", "L", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def read_raster(path: Path, data: bytes, label: bool) -> Volume:
    """Read a picture, or the pages of a TIFF as the slices of a stack.

    An image in colours becomes grey (ITU-R 601 luma). A label's values are those of its grey or
    of its palette's places, never of colours; a JPEG is none, because its values are not kept. A
    photograph that says how it is to be turned (Exif) is turned so, and ``turned`` says how.
    """
    from PIL import Image, UnidentifiedImageError

    kind = FORMATS[path.suffix.lower()]
    if label and kind == "JPEG":
        raise FileFault(
            "lossy-label",
            path,
            "is a JPEG, which keeps values only nearly: at the edges it holds ones that nobody "
            "drew",
            "export the label as PNG",
        )
    try:
        image = Image.open(io.BytesIO(data), formats=[kind])
        turned = image.getexif().get(_ORIENTATION, 1)
        pages = getattr(image, "n_frames", 1)
        if pages > 1 and kind != "TIFF":
            raise FileFault(
                "dimensions", path, f"holds {pages} pictures", "save each as a file of its own"
            )
        spacing = None
        if kind == "TIFF":
            described = _Description(path, image, pages)
            spacing = described.spacing_mm
            _check_tiff(path, image, label)
        slices = []
        for page in range(pages):
            if page:
                image.seek(page)
            slices.append(_pixels(path, image, data, label))
    except (
        UnidentifiedImageError,
        Image.DecompressionBombError,
        OSError,
        ValueError,
        ArithmeticError,
        TypeError,
        LookupError,
        EOFError,
        MemoryError,
        SyntaxError,
        struct.error,
        zlib.error,
    ) as error:
        raise _damaged(path, data, kind, error) from None
    if len({array.shape for array in slices}) > 1:
        raise FileFault(
            "mixed-slices",
            path,
            f"holds pages of different shapes {sorted({array.shape for array in slices})}",
            "save the stack alone, without previews or smaller copies",
        )
    # (S, R, C) -> (i, j, k) = (columns, rows, slices)
    volume = Volume(np.stack(slices).transpose(2, 1, 0), None, spacing)
    if turned not in range(2, 9):
        return volume
    if label:
        raise FileFault(
            "turned-label",
            path,
            "is a label that is to be turned when it is shown (its orientation tag)",
            "save it upright, without the tag",
        )
    # Pillow has turned a TIFF already.
    upright = volume.array if kind == "TIFF" else turn(volume.array, turned)
    remark = Remark(
        "turned-image",
        "is turned by its orientation tag, as viewers do",
        "nothing is needed if its label lies on the upright image",
    )
    if turned >= 5 and spacing is not None:
        spacing = (spacing[1], spacing[0], spacing[2])
    return replace(volume, array=upright, spacing_mm=spacing, turned=turned, remarks=(remark,))


def turn(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn (i, j, k) = (columns, rows, slices) as an Exif orientation from 1 to 8 says.

    Exif 2.32, tag 274: where the stored picture's row 0 and column 0 are seen.
    """
    if orientation >= 5:
        array = array.transpose(1, 0, 2)
    if orientation in (2, 3, 7, 6):
        array = array[::-1]
    if orientation in (3, 4, 7, 8):
        array = array[:, ::-1]
    return array


def turn_label(path: Path, label: Volume, image: Volume) -> Volume:
    """Turn a label as its photograph was, unless it was drawn on the upright one.

    Raises:
        FileFault: the shapes do not tell which of the two it was drawn on.
    """
    shape, own = image.array.shape, label.array.shape
    stored = (shape[1], shape[0], shape[2]) if image.turned >= 5 else shape
    if stored == shape:
        raise FileFault(
            "turned-image",
            path,
            "belongs to a photograph that is turned by its orientation tag, and its shape does not "
            "tell whether it was drawn on the turned one",
            "save the photograph upright, without the tag, and check that the label lies on it",
        )
    return replace(label, array=turn(label.array, image.turned)) if own == stored else label


def _pixels(path: Path, image: Any, data: bytes, label: bool) -> np.ndarray:
    """The page that ``image`` shows, (R, C)."""
    depth = data[24] if image.format == "PNG" else 8
    if image.format == "PNG" and depth == 16 and data[25] != 0:
        # Pillow keeps the upper byte only.
        raise FileFault(
            "colours", path, "has 16 bits in several channels", "save it as 16-bit grey"
        )
    if image.format == "TIFF":
        depth = image.tag_v2.get(258, (1,))[0]
    image.load()
    if image.mode in _GREYS:
        array = np.asarray(image)
        if label and image.mode == "L" and depth in (2, 4):
            # Pillow stretches 2 and 4 bits to 255.
            array = array // (255 // (2**depth - 1))
        if image.format == "TIFF":
            array = _as_meant(path, array, image.tag_v2.get(339, (1,))[0])
        return array.astype(np.uint8) if image.mode == "1" else array
    if image.mode not in _COLOURS:
        raise FileFault(
            "colours", path, f"holds colours as {image.mode}", "save it as grey or as RGB"
        )
    if not label:
        return np.asarray(image.convert("RGB").convert("L"))
    if image.mode == "P":
        return np.asarray(image)
    array = np.asarray(image)
    channels = array.shape[-1]
    if image.mode in ("RGBA", "LA", "PA") and (array[..., -1] != 255).any():
        raise FileFault(
            "colours",
            path,
            "is a label with transparent pixels",
            "save it as grey or palette values without transparency",
        )
    # Colours have no agreed number; grey saved as colour does.
    grey = array[..., : channels - (image.mode in ("RGBA", "RGBX", "LA", "PA"))]
    if image.mode in ("CMYK", "YCbCr") or (grey != grey[..., :1]).any():
        raise FileFault(
            "colours", path, "is a label in colours", "save it as grey or palette values"
        )
    return grey[..., 0]


def _as_meant(path: Path, array: np.ndarray, form: int) -> np.ndarray:
    """A page in the sample format of its tag (1 unsigned, 2 signed) where Pillow has the other."""
    if form == 2 and array.dtype == np.uint8:
        return array.view(np.int8)
    if form == 1 and array.dtype == np.int32 and array.min() < 0:
        raise FileFault(
            "wide-values", path, "holds values above 2147483647", "save it as 16 bits or as floats"
        )
    return array


def _check_tiff(path: Path, image: Any, label: bool) -> None:
    bits = image.tag_v2.get(258, (1,))
    white_is_zero = image.tag_v2.get(262) == 0
    # Pillow turns such values round where they have up to 8 bits.
    if white_is_zero and (label or max(bits) > 8):
        raise FileFault(
            "white-is-zero",
            path,
            "is stored with white as 0 (its photometric interpretation)",
            "save it with black as 0",
        )
    if len(bits) > 1 and max(bits) > 8:
        raise FileFault(
            "colours", path, f"has {max(bits)} bits in several channels", "save it as 16-bit grey"
        )
    plain = max(bits) <= 8 or (max(bits) == 16 and image.tag_v2.get(339, (1,))[0] == 1)
    if image.tag_v2.prefix == b"MM" and image.tag_v2.get(259, 1) != 1 and not plain:
        # Pillow leaves the bytes of such values in the wrong order.
        raise FileFault(
            "byte-order",
            path,
            "is big-endian and compressed, which is not read",
            "save it uncompressed or little-endian",
        )
    if label and image.tag_v2.get(259) in (6, 7):
        raise FileFault(
            "lossy-label",
            path,
            "is compressed as JPEG, which keeps values only nearly",
            "export the label uncompressed or with LZW",
        )


class _Description:
    """What ImageJ or OME write of a stack: how many pages of which kind, and their spacing."""

    def __init__(self, path: Path, image: Any, pages: int) -> None:
        self._path, self._image = path, image
        self.spacing_mm: tuple[float, float, float] | None = None
        text = str(image.tag_v2.get(270, ""))
        if text.startswith("ImageJ="):
            self._imagej(dict(re.findall(r"^(\w+)=(.*?)\s*$", text, re.M)), pages)
        elif "<OME" in text:
            self._ome(text, pages)

    def _imagej(self, said: dict[str, str], pages: int) -> None:
        self._check(
            {name: int(said.get(name, 1)) for name in ("channels", "frames")},
            int(said.get("images", 1)),
            pages,
        )
        mm = UNITS_MM.get(said.get("unit", "").replace("\\u00B5", "µ").lower())
        # ImageJ keeps pixels a unit in the resolution tags, whose own unit is then none (1).
        x, y = (float(self._image.tag_v2.get(tag, 0)) for tag in (282, 283))
        if mm is not None and x > 0 and y > 0:
            self.spacing_mm = (mm / x, mm / y, mm * float(said.get("spacing", 1)))

    def _ome(self, text: str, pages: int) -> None:
        pixels = next(
            (node for node in ElementTree.fromstring(text).iter() if node.tag.endswith("Pixels")),
            None,
        )
        if pixels is None:
            return
        counts = {axis: int(pixels.get(f"Size{axis}", 1)) for axis in "ZCT"}
        # Samples of a colour are channels in OME and lie in one page.
        samples = len(self._image.tag_v2.get(258, (1,)))
        counts["C"] //= samples if counts["C"] % samples == 0 else 1
        self._check(
            {"channels": counts["C"], "time points": counts["T"]},
            counts["Z"] * counts["C"] * counts["T"],
            pages,
        )
        sizes = []
        for axis in "XYZ":
            mm = UNITS_MM.get(pixels.get(f"PhysicalSize{axis}Unit", "µm").lower())
            size = float(pixels.get(f"PhysicalSize{axis}", 0)) * (mm or 0)
            sizes.append(size or (1.0 if axis == "Z" and pages == 1 else 0.0))
        if all(sizes):
            self.spacing_mm = (sizes[0], sizes[1], sizes[2])

    def _check(self, several: dict[str, int], images: int, pages: int) -> None:
        for name, count in several.items():
            if count > 1:
                raise FileFault(
                    "dimensions",
                    self._path,
                    f"holds {count} {name}",
                    "save one of them; pages are the slices of one stack here",
                )
        if images != pages:
            raise FileFault(
                "dimensions",
                self._path,
                f"says that it holds {images} images and shows {pages}",
                "save it as a plain TIFF stack, an image a page",
            )


def _damaged(path: Path, data: bytes, kind: str, error: Exception) -> FileFault:
    from PIL import Image, UnidentifiedImageError

    try:
        found = Image.open(io.BytesIO(data)).format
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError):
        found = None
    if found not in (None, kind):
        return FileFault(
            "wrong-suffix", path, f"is no {kind} file but {found}", "name it so, or export it again"
        )
    reason = type(error).__name__
    if kind == "TIFF" and data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return FileFault(
            "damaged",
            path,
            f"is damaged or a kind of TIFF that is not read ({reason})",
            "save it again with 8 or 16 bits or single-precision floats, uncompressed or with LZW",
        )
    return FileFault(
        "damaged", path, f"is not a readable {kind} file ({reason})", "export or copy it again"
    )

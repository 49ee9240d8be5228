"""MetaImage, .mha or .mhd with its data in another file.

Read here, because the libraries that read it are ITK's, of 50 MB and more, for a header of a dozen
lines; its fields: https://itk.org/Wiki/ITK/MetaIO/Documentation.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fedshift.sites.findings import FileFault, Remark
from fedshift.sites.readers.volume import Contents, Volume, unit_mm

SUFFIXES = (".mha", ".mhd")
_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_MODALITIES = {"MET_MOD_CT": "CT", "MET_MOD_MR": "MR", "MET_MOD_US": "US"}
NO_SPACE = Remark(
    "space-unknown",
    "does not say which way its axes point (its header has no TransformMatrix)",
    "export it again with one, or look whether it is turned as the other sites' images are",
)


def data_file(path: Path, start: bytes) -> Path | None:
    """Where a header, whose first bytes are ``start``, says that its data lie; None: behind it."""
    name = _header(start)[0].get("ElementDataFile", "LOCAL")
    return None if name.upper() in ("LOCAL", "LIST") or "%" in name else path.parent / name


def _header(data: bytes) -> tuple[dict[str, str], int]:
    """The fields, and where the line ends that names the data, the header's last."""
    end = re.search(rb"(?m)^ElementDataFile[ \t]*=[^\n]*(?:\n|\Z)", data)
    stop = end.end() if end else 0
    fields = {}
    for line in data[:stop].decode("utf-8", "replace").splitlines():
        name, _, value = line.partition("=")
        fields[name.strip()] = value.strip()
    return fields, stop


def read_metaimage(path: Path, contents: Contents) -> Volume:
    fields, stop = _header(contents[0][1])
    if not stop:
        raise _damaged(path, "its header names no ElementDataFile")
    if len(contents) < 2 and fields["ElementDataFile"].upper() != "LOCAL":
        raise FileFault(
            "several-files",
            path,
            f"keeps its data in several files ({fields['ElementDataFile'][:40]})",
            "save it as one .mha file",
        )
    body = contents[1][1] if len(contents) > 1 else contents[0][1][stop:]
    try:
        if int(fields.get("ElementNumberOfChannels", 1)) > 1:
            raise FileFault(
                "dimensions",
                path,
                f"holds {fields['ElementNumberOfChannels']} values a point",
                "export one of them",
            )
        shape = tuple(int(size) for size in fields["DimSize"].split())
        if min(shape) < 1:
            raise ValueError(f"DimSize is {fields['DimSize']}")
        array = _values(path, fields, body, shape)
        dimensions = int(fields.get("NDims", len(shape)))
        if dimensions != len(shape):
            raise ValueError(f"NDims is {dimensions}, DimSize {fields['DimSize']}")
        while array.ndim > 3 and array.shape[-1] == 1:
            array = array[..., 0]
        spacing, affine = _place(path, fields, dimensions, array.ndim)
    except (ValueError, KeyError, OverflowError, MemoryError, zlib.error) as error:
        raise _damaged(path, " ".join(str(error).split())[:120]) from None
    flat = array.ndim < 3
    while array.ndim < 3:
        array = array[..., None]
    return Volume(
        array,
        affine,
        spacing,
        modality=_MODALITIES.get(fields.get("Modality", ""), ""),
        remarks=(NO_SPACE,) if affine is None and not flat else (),
    )


def _damaged(path: Path, reason: str) -> FileFault:
    return FileFault(
        "damaged", path, f"is not a readable MetaImage file ({reason})", "export or copy it again"
    )


def _flag(fields: Mapping[str, str], *names: str) -> bool:
    return any(fields.get(name, "False").lower() in ("true", "1", "yes") for name in names)


def _values(
    path: Path, fields: Mapping[str, str], body: bytes, shape: tuple[int, ...]
) -> np.ndarray:
    if fields["ElementType"] not in _TYPES:
        raise FileFault(
            "values", path, f"holds {fields['ElementType']}", "export it again as plain numbers"
        )
    kind = np.dtype(_TYPES[fields["ElementType"]])
    big = _flag(fields, "ElementByteOrderMSB", "BinaryDataByteOrderMSB")
    kind = kind.newbyteorder(">" if big else "<")
    count = int(np.prod(shape, dtype=np.int64))
    if fields.get("BinaryData", "True").lower() in ("false", "0", "no"):
        values = np.array(body.split(), kind)
    else:
        skip = int(fields.get("HeaderSize", 0))
        if _flag(fields, "CompressedData"):
            # 32: zlib's own frame or gzip's.
            body = zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(body)
        elif skip:
            body = body[skip:] if skip > 0 else body[-count * kind.itemsize :]
        if len(body) < count * kind.itemsize:
            raise ValueError(f"{len(body)} bytes of {count * kind.itemsize}")
        values = np.frombuffer(body, kind, count)
    return values.reshape(shape, order="F")


def _place(
    path: Path, fields: Mapping[str, str], dimensions: int, used: int
) -> tuple[tuple[float, float, float] | None, np.ndarray | None]:
    """Spacing and affine. Row k of TransformMatrix is axis k's direction, left, back and up."""
    mm = unit_mm(path, fields.get("DistanceUnits", ""))
    sizes = _numbers(fields, "ElementSpacing", "ElementSize")
    if sizes is None:
        return None, None
    sizes = mm * sizes
    first, second, third = [*sizes[:used], 1.0, 1.0][:3]
    spacing = (float(first), float(second), float(third))
    matrix = _numbers(fields, "TransformMatrix", "Orientation", "Rotation")
    if matrix is None and fields.get("AnatomicalOrientation") == "RAI":
        matrix = np.eye(dimensions).ravel()  # from right, front and below: ITK's identity
    if used < 3 or matrix is None:
        return spacing, None
    directions = matrix.reshape(dimensions, dimensions)[:3, :3]
    offset = _numbers(fields, "Offset", "Position", "Origin")
    affine = np.eye(4)
    affine[:3, :3] = directions.T * sizes[:3]
    affine[:3, 3] = 0 if offset is None else mm * offset[:3]
    affine[:2] *= -1
    usable = np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-9
    return spacing, affine if usable and min(spacing) > 0 else None


def _numbers(fields: Mapping[str, str], *names: str) -> np.ndarray | None:
    for name in names:
        if name in fields:
            return np.array(fields[name].split(), float)
    return None

"""Images without a place in space: PNG, by Pillow."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from fedshift.sites.findings import FileFault
from fedshift.sites.readers.volume import Volume


def read_png(path: Path, data: bytes, label: bool) -> Volume:
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(data), formats=["PNG"])
        image.load()
    except (
        UnidentifiedImageError,
        Image.DecompressionBombError,
        OSError,
        ValueError,
        SyntaxError,
    ) as error:
        raise FileFault(
            "damaged",
            path,
            f"is not a readable PNG file ({type(error).__name__})",
            "export or copy it again",
        ) from None
    if image.mode in ("RGB", "RGBA", "LA") and label:
        array = np.asarray(image)
        # Colours have no agreed number; grey saved as colour does.
        grey = array[..., :3] if image.mode != "LA" else array[..., :1]
        if (grey != grey[..., :1]).any():
            raise FileFault(
                "colours", path, "is a label in colours", "save it as grey or palette values"
            )
        array = grey[..., 0]
    elif image.mode in ("RGB", "RGBA", "LA", "P", "PA") and not label:
        array = np.asarray(image.convert("RGB").convert("L"))
    else:
        array = np.asarray(image)
    return Volume(array.astype(np.uint16 if label else np.float32).T[..., None], None, None)

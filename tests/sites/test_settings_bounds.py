"""Settings of the images have values that an image can have, whoever asks for them."""

from __future__ import annotations

from typing import Any

import pytest

from fedshift import UserError
from fedshift.sites import DataSettings


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("spacing_mm", 1e-9),
        ("spacing_mm", 1e9),
        ("spacing_mm", float("nan")),
        ("default_spacing_mm", 0),
        ("window", [0, 1e-300]),
        ("window", [-1e300, 1e300]),
        ("window", [1, 1]),
    ],
)
def test_what_no_image_has_is_refused(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"data\.{key}"):
        DataSettings.from_config({key: value})


@pytest.mark.parametrize(("key", "value"), [("spacing_mm", 2.5e-4), ("window", [-160, 240])])
def test_what_images_have_is_taken(key: str, value: Any) -> None:
    DataSettings.from_config({key: value})
